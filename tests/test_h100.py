"""Programs compiled for H100s that are not here, by NVIDIA's own compiler: bfloat16 attention is
cuDNN's. In an environment of its own, see `.ci/run`; elsewhere these tests are not collected."""

import jax
import pytest
from helpers import ROOT, load

from common import tree
from common.errors import BadInput
from common.planning import compiled
from common.sweeps import population
from lm import gpt

SMALL = {"model.layers": 2, "train.accumulate": 1, "train.batch_size": 16}
WAYS = (None, "plain")
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
MASKED = tuple(name.replace("Softmax", "ScaleBiasSoftmax") for name in (FORWARD, BACKWARD))


def report(file: str, where: str = "h100:1", **settings) -> compiled.CostReport:
    return compiled.examine(load(f"{ROOT}/configs/{file}", **settings), where)


def cudnn(found: compiled.CostReport) -> dict[str, int]:
    return {name: times for name, times in found.kernels.items() if "cudnn$fmha" in name}


@pytest.mark.parametrize(
    ("file", "settings", "names"),
    [
        ("lm/gpt2_small.py", SMALL, MASKED),  # packed documents are a mask
        ("lm/gpt2_small.py:llama", SMALL | {"model.remat": "dots"}, MASKED),
        ("lm/bert_base.py", SMALL | {"model.attention_dropout": None}, MASKED),
        ("vision/imagenet_vit.py", SMALL, (FORWARD, BACKWARD)),
    ],
)
def test_attention_in_bfloat16_is_cudnns(file, settings, names):
    """Forward and backward of both blocks; forward again where it is computed again."""
    forward, backward = names
    times = 4 if "model.remat" in settings else 2
    assert cudnn(report(file, **settings)) == {forward: times, backward: 2}


def test_float32_is_not():
    assert not cudnn(report("lm/gpt2_small.py", **SMALL | {"model.dtype": None}))


def test_no_map_is_in_memory():
    fused, plain = (
        report("lm/gpt2_small.py", **SMALL | {"model.implementation": way}) for way in WAYS
    )
    assert not cudnn(plain)
    assert fused.memory["working"] < 0.9 * plain.memory["working"]
    assert fused.traffic_bytes < 0.75 * plain.traffic_bytes


def test_each_device_attends_for_its_rows_and_heads():
    """FSDP x tensor parallel: the kernel asks for no collective that the plain one does not."""
    mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    found = {
        way: report("lm/gpt2_small.py", "h100:8", **SMALL | mesh | {"model.implementation": way})
        for way in WAYS
    }
    told = lambda report: {(c["kind"], c["axes"]): c["times"] for c in report.collectives}
    assert sum(cudnn(found[None]).values()) == 4
    assert told(found[None]) == told(found["plain"])


def test_key_heads_that_tensor_does_not_divide_are_whole_everywhere():
    few = {"model.kv_heads": 2, "mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 4}
    found = report("lm/gpt2_small.py:llama", "h100:8", **SMALL | few)
    assert cudnn(found) == dict.fromkeys(MASKED, 2)


def test_splash_is_for_tpus():
    with pytest.raises(BadInput, match="splash is for TPUs, not a gpu"):
        report("lm/gpt2_small.py", **SMALL | {"model.implementation": "splash"})


def test_stacked_trials_attend_plainly(tmp_path):
    """jax cannot stack cuDNN's attention with masks."""
    sizes = {"model.layers": 1, "model.width": 32, "model.hidden": 48, "model.dtype": "bfloat16"}
    sizes |= {"train.duration": "2 steps", "data.vocab_size": 300, "data.length": 32}
    sizes |= {"data.folder": str(tmp_path / "data"), "train.batch_size": 8}
    configs = [load(f"{ROOT}/configs/lm/gpt_sotu.py", **sizes, seed=seed) for seed in (0, 1)]
    found = population.run(configs, [tmp_path / "0", tmp_path / "1"])
    assert [one["steps"] for one in found] == [2, 2]


def test_on_another_device_it_is_plain():
    """With NVIDIA's plugin installed, too: values and gradients, bit for bit."""
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 5, 200)
    sizes = {"vocab_size": 200, "width": 32, "layers": 1, "heads": 4, "hidden": 48}
    found = []
    for way in WAYS:
        model = gpt.GPT(**sizes, max_length=16, dtype="bfloat16", implementation=way)
        params = model.init(jax.random.key(1), tokens)
        loss = lambda params, model=model: (model.apply(params, tokens) ** 2).mean()
        assert ("cond" in str(jax.make_jaxpr(loss)(params))) == (way is None)
        found.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(params)))
    assert tree.hexdigest(found[0]) == tree.hexdigest(found[1])
