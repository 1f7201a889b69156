"""Depths of the parameters of real models, and of one without blocks."""

import jax
import models
import pytest

from common import tree
from common.errors import BadInput
from common.training import depths

# {model: {height: what has it}}; two blocks each, ConvNeXt and ResNet three in two stages.
BERT = {
    3: {"token", "position", "type", "embedding_norm"},
    2: {"block_0"},
    1: {"block_1"},
    0: {"head_dense", "head_norm", "head_bias", "pooler", "next"},
}
EXPECTED = {
    "bert": BERT,
    "electra": BERT
    | {3: {"token", "type", "embedding_norm", "embedding_projection", "position_scale"}}
    | {0: {"head_dense", "head_norm", "head_bias"}},
    "classifier": BERT | {0: {"pooler", "classifier"}},
    "llama": {3: {"token"}, 2: {"block_0"}, 1: {"block_1"}, 0: {"final_norm", "output"}},
    "vit": {
        3: {"patch", "position", "class_token", "register_tokens"},
        2: {"block_0"},
        1: {"block_1"},
        0: {"final_norm", "head"},
    },
    "convnext": {
        4: {"stem", "stem_norm"},
        3: {"stage_0_block_0"},
        2: {"downsample_1", "downsample_norm_1", "stage_1_block_0"},
        1: {"stage_1_block_1"},
        0: {"final_norm", "head"},
    },
    "resnet": {
        4: {"stem", "stem_norm"},
        3: {"stage_0_block_0"},
        2: {"stage_1_block_0"},
        1: {"stage_1_block_1"},
        0: {"head"},
    },
    "airbench": {
        3: {"whitening"},
        2: {f"block_0_{layer}_{i}" for layer in ("conv", "norm") for i in range(2)},
        1: {f"block_1_{layer}_{i}" for layer in ("conv", "norm") for i in range(2)},
        0: {"head"},
    },
}


def paths(name: str) -> list[str]:
    model, inputs = models.MODELS[name]
    return list(tree.flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]))


@pytest.mark.parametrize("name", EXPECTED)
def test_depths_of_models(name):
    by_height = {}
    for path, height in depths.heights(paths(name)).items():
        by_height.setdefault(height, set()).add(path.split("/")[0])
    assert by_height == EXPECTED[name]


def test_blocks_are_counted_as_numbers_wherever_they_stand():
    found = depths.heights(f"encoder/block_{i}/mlp/up/kernel" for i in range(11))
    assert [found[f"encoder/block_{i}/mlp/up/kernel"] for i in range(11)] == list(range(11, 0, -1))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(BadInput, match=r"config\.optim\.layer_decay: no parameter of this model"):
        depths.heights(paths("cnn"))
