"""An LSTM on the State of the Union addresses, with 1% fewer parameters than the GPT of gpt_sotu.

Two layers of 360, projected to 128 (Sak et al. 2014); gradients are cut every 64 of a row's 128
tokens, the state is not. The rate is the best of four on the validation part, in runs of 300 steps
of seed 0: AdamW at 0.01 (6.67 nats), Muon at 0.02, 0.04 and 0.08 (4.74, 4.39 and 4.34; two cores,
at 5d23816). The multipliers of `gpt_sotu` were worse (5.26 at 0.02).
"""

import ml_collections

from common.errors import choice
from configs.lm import gpt_sotu


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant: the data and the length of training of `gpt_sotu`."""
    choice("--config rnn_sotu.py", arg, ("",))
    config = gpt_sotu.get_config()
    config.model = ml_collections.ConfigDict(
        {
            "module": "lm.rnn:RNN",
            "cell": "lstm",
            "width": 360,
            "layers": 2,
            "projection_width": 128,
            "truncation": 64,
        }
    )
    config.optim = ml_collections.ConfigDict(
        {
            "name": "muon",
            "lr": 0.08,
            "schedule": "linear",
            "warmup": "5%",
            "clip": 1.0,
        }
    )
    return config
