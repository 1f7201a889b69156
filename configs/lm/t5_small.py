"""T5 1.1 small (Raffel et al. 2020, Shazeer 2020) on WMT 2014 English-German, for pods.

`scratch` begins anew, with byte pairs of its own. `published` begins with weights in the Hugging
Face layout, in the folder `t5_small`, or `--config.init.path=DIR --config.data.tokenizer=DIR`, with
its tokenizer.json beside them. Adafactor at a constant 1e-3, as for fine-tuning in the paper, with
dropout 0.1. Pairs: `tfds build wmt14_translate/de-en --file_format=array_record`. Not run, so there
is no figure.
"""

import ml_collections

from common.errors import choice
from configs.lm import transformer_wmt
from lm.seq2seq import transformer


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is the variant."""
    variant = choice("--config t5_small.py", arg or "scratch", ("scratch", "published"))
    sizes = transformer.SIZES["t5_small"]
    config = transformer_wmt.get_config()
    config.model = {
        "module": "lm.seq2seq.transformer:EncoderDecoder",
        **{name: value for name, value in sizes.items() if name != "vocab_size"},
        "dropout": 0.1,
        "dtype": "bfloat16",
    }
    config.data.vocab_size = sizes["vocab_size"]
    config.data.length = 256
    config.loss = {}
    config.optim = {"name": "adafactor", "lr": 1e-3, "schedule": "constant", "clip": 1.0}
    config.train.batch_size = 128
    if variant == "published":
        config.data.tokenizer, config.data.start = "t5_small", "<pad>"
        config.init = {"path": "t5_small"}
    return config
