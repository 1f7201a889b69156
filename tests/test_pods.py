"""The main configs' programs, compiled for TPU pods that are not here: what must not change with
the number of chips, what fits, and pages of what each takes, so that a change that makes a pod
slower shows as a difference to review.

A page: `tests/goldens/pods/NAME.txt`; `pytest tests/test_pods.py --update-goldens -m slow`, and
the same with `--measure pods`, write them anew. Numbers are compared to the last digit where jax
and libtpu are those of the page, and within 5% elsewhere.
"""

import functools
import re
from importlib import metadata

import pytest
from helpers import ROOT, load

from common.planning import compiled

pytestmark = pytest.mark.slow

# Rows on one chip; a pod's batch is so many times its chips.
SCAN = {"model.scan": True}
WIDE = {"model.width": 1024, "model.projection_width": None, "optim.name": "adamw"}
TESTLESS = {"evals.test": None}
MODELS = {
    "bert_base": ("bert_base.py", 32, SCAN),
    "gpt2_small": ("gpt2_small.py", 8, SCAN | {"train.accumulate": 1, "model.remat": "block"}),
    "rnn_sotu": ("rnn_sotu.py", 32, WIDE | TESTLESS),
    "transformer_wmt": ("transformer_wmt.py", 32, SCAN | TESTLESS),
}
WAYS = {"data": ("data", -1, 1), "fsdp": ("fsdp", 1, -1)}
CHIPS = {8: "v5e:2x4", 256: "v5e:16x16"}


@functools.cache
def report(model: str, way: str, chips: int) -> compiled.CostReport:
    """One model, data parallel or FSDP, on so many v5e chips."""
    file, rows, others = MODELS[model]
    _, data, fsdp = WAYS[way]
    settings = {"mesh.data": data, "mesh.fsdp": fsdp, "train.batch_size": rows * chips}
    settings |= {"evals.valid.batch_size": chips}
    return compiled.examine(load(f"{ROOT}/configs/lm/{file}", **settings | others), CHIPS[chips])


def page(found: compiled.CostReport) -> str:
    """What a reviewer reads."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "libtpu"))
    mesh = " x ".join(f"{axis} {n}" for axis, n in found.mesh.items())
    rows = [
        ("parameters", found.parameters),
        ("flops", found.flops),
        ("xla_flops", found.xla_flops),
    ]
    rows += [("traffic_bytes", found.traffic_bytes), ("aliased_bytes", found.aliased_bytes)]
    rows += [(f"memory.{name}", value) for name, value in found.memory.items()]
    rows += [
        (f"{c['kind']}.{c['axes']}.{key}", c[key])
        for c in found.collectives
        for key in ("times", "bytes")
    ]
    lines = [f"{name} = {value:,.0f}" for name, value in rows]
    return "\n".join([f"{found.topology}, {mesh}", versions, *lines]) + "\n"


def numbers(text: str) -> dict[str, float]:
    return {k: float(v.replace(",", "")) for k, v in re.findall(r"^(\S+) = (\S+)$", text, re.M)}


def check_page(name: str, found: compiled.CostReport, update: bool) -> None:
    path, text = ROOT / f"tests/goldens/pods/{name}.txt", page(found)
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), "no golden: pytest tests/test_pods.py -m slow --update-goldens"
    kept = path.read_text()
    if kept.splitlines()[1] == text.splitlines()[1]:
        assert text == kept
    else:
        assert numbers(text) == pytest.approx(numbers(kept), rel=0.05)


# CI has the pair that moves most; the others, and the 7B model, are a measure.
PODS = pytest.mark.measure("pods")
PAIRS = [
    ("bert_base", "fsdp"),
    pytest.param("bert_base", "data", marks=PODS),
    pytest.param("gpt2_small", "data", marks=PODS),
    pytest.param("gpt2_small", "fsdp", marks=PODS),
    pytest.param("rnn_sotu", "data", marks=PODS),
    pytest.param("rnn_sotu", "fsdp", marks=PODS),
    pytest.param("transformer_wmt", "data", marks=PODS),
    pytest.param("transformer_wmt", "fsdp", marks=PODS),
]


@pytest.mark.parametrize(("model", "way"), PAIRS)
def test_more_chips_change_nothing_on_a_chip(model, way, request):
    few, many = report(model, way, 8), report(model, way, 256)
    check_page(f"{model}_{way}", few, request.config.getoption("--update-goldens"))
    assert few.fits
    assert many.fits
    # The same work on each chip.
    assert many.flops == pytest.approx(few.flops, rel=0.01)
    assert many.xla_flops == pytest.approx(few.xla_flops, rel=0.01)
    # Under FSDP the compiler orders gathers in another way: 1.8% more for GPT-2.
    near = 0.01 if way == "data" else 0.02
    # A chip's part of the gradients and of the new state gets smaller, too.
    parts = 0 if way == "data" else 4 * few.memory["parameters"]
    working = few.memory["working"]
    assert many.memory["working"] == pytest.approx(working, rel=near, abs=parts)
    kinds = {(c["kind"], c["axes"]): c["times"] for c in few.collectives}
    assert {axes for _, axes in kinds} == {way}
    more = {(c["kind"], c["axes"]): c["times"] for c in many.collectives}
    if way == "data":
        assert many.traffic_bytes == pytest.approx(few.traffic_bytes, rel=0.01)
        assert set(kinds) == {("all-reduce", "data")}
        assert more == kinds
    else:
        assert {kind for kind, _ in (*kinds, *more)} <= {
            "all-gather",
            "all-reduce",
            "reduce-scatter",
        }
        for found, chips in ((few, 8), (many, 256)):
            state = found.memory["parameters"] + found.memory["optimizer"]
            # Biases and norms are whole everywhere: a quarter of BERT's state on 256 chips, more of
            # a narrower model's.
            assert state < 1.45 * 3 * 4 * found.parameters / chips


@PODS
def test_seven_billion_parameters_fit_64_chips(request):
    found = compiled.examine(load(f"{ROOT}/configs/lm/gpt_7b.py"), "v5p:4x4x4")
    check_page("gpt_7b", found, request.config.getoption("--update-goldens"))
    assert 6.5e9 < found.parameters < 7e9
    assert found.mesh == {"data": 1, "fsdp": 16, "tensor": 4}
    assert found.fits
    assert compiled.bound(found)[0] == "compute"


@PODS
def test_siglip_b16_on_256_chips(request):
    """Batches of 32,768 pairs: they fit, and texts pass around the ring one chunk at a time. Blocks
    that are computed again are bound by memory, whose traffic is a quarter above the compute."""
    found = compiled.examine(load(f"{ROOT}/configs/vision/siglip_b16.py"), "v5e:16x16")
    check_page("siglip_b16", found, request.config.getoption("--update-goldens"))
    assert found.fits
    assert compiled.bound(found)[0] == "memory"
    kinds = {c["kind"] for c in found.collectives}
    assert kinds == {"all-reduce", "collective-permute"}


@PODS
def test_a_masked_autoencoder_fits_64_chips(request):
    settings = {"model.scan": True, "evals.val.batch_size": 64}
    found = compiled.examine(load(f"{ROOT}/configs/vision/mae_b16.py", **settings), "v5e:8x8")
    check_page("mae_b16", found, request.config.getoption("--update-goldens"))
    assert found.fits
    assert {(c["kind"], c["axes"]) for c in found.collectives} == {("all-reduce", "data")}


@PODS
def test_splash_attention_has_no_maps_in_memory():
    """Two blocks of Llama's shape on long rows: three kernels a block, forward and backward, each
    device with its rows and heads."""
    small = {"model.layers": 2, "model.max_length": 2048, "data.length": 2048}
    small |= {"train.batch_size": 32, "train.accumulate": 1, "evals.valid.batch_size": 32}
    small |= {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    found = {
        way: compiled.examine(
            load(f"{ROOT}/configs/lm/gpt2_small.py:llama", **small | {"model.implementation": way}),
            "v5e:2x4",
        )
        for way in ("plain", "splash")
    }
    plain, splash = found["plain"], found["splash"]
    assert not plain.kernels.get("tpu_custom_call")
    assert splash.kernels["tpu_custom_call"] == 2 * 3
    assert splash.memory["working"] < 0.9 * plain.memory["working"]
    assert splash.traffic_bytes < 0.85 * plain.traffic_bytes
    told = lambda report: {(c["kind"], c["axes"]): c["times"] for c in report.collectives}
    assert told(splash).keys() <= told(plain).keys()
