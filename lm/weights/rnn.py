"""Recurrent language models as torch stores them: a state dict of `torch.nn.LSTM`, `GRU` or `RNN`
named `rnn`, or of that module alone, with an embedding `encoder` and a projection `decoder` as in
PyTorch's own example of a word language model. Such files have no config.json: their shapes alone
are compared."""

from common.weights.family import Family
from common.weights.names import Names
from lm import rnn


def layers(prefix: str = "", block: str = "block_{i}", number: str = "_l{i}") -> tuple:
    """Rows of a stack of layers in both directions.

    Args:
      prefix: of the names there.
      block: the path of a layer here.
      number: how names there end, before "_reverse".
    """
    rows = []
    for here, end in (("forward", number), ("backward", f"{number}_reverse")):
        for part, name in (("input", "ih"), ("recurrent", "hh")):
            path = f"{block}/{here}/{part}"
            rows += [(f"{path}/kernel", f"{prefix}weight_{name}{end}", "matrix")]
            rows += [(f"{path}/bias", f"{prefix}bias_{name}{end}", "vector")]
        projection = f"{block}/{here}/projection/kernel"
        rows += [(projection, f"{prefix}weight_hr{end}", "matrix")]
    return tuple(rows)


FAMILY = Family(
    "torch.nn",
    rnn.RNN,
    (
        Names(
            (
                ("token", "encoder", "vocabulary"),
                *layers(),
                ("output", "decoder", "vocabulary"),
                ("head_bias", "decoder.bias", "vector"),
            ),
            prefix="rnn.",
            heads=("encoder.", "decoder."),
            copies=(("decoder.weight", "encoder.weight"),),
        ),
    ),
    {},
    {},
    (("", ""),),
)
