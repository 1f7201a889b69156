"""Our models beside those of `transformers`, and back there: see `parity`."""

import os

import numpy as np
import parity
import pytest

FAST = ("llama, tied, biases, wide heads",)
BACK = ("roberta, classes", "qwen2, window")
ALIKE = ("t5", "siglip2")  # computed as another is: `python -m tests.measure parity` alone


@pytest.fixture(scope="module", autouse=True)
def offline():
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("transformers")


def slow(names, but=()):
    return [name if name in but else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow([n for n in parity.CASES if n not in ALIKE], FAST))
def test_outputs_loss_and_every_gradient(name, tmp_path, compiled_in_haste):
    errors = parity.compare(parity.CASES[name], "float64", tmp_path)
    assert max(errors[:3]) < parity.TOLERANCE["float64"], errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "resnet, bottleneck"])
def test_the_usual_path(name, tmp_path):
    """In float32, with whatever attention it takes."""
    errors = parity.compare(parity.CASES[name], "float32", tmp_path)
    assert max(errors.outputs, errors.loss) < parity.TOLERANCE["float32"], errors


@pytest.mark.parametrize("name", slow(parity.CASES, BACK))
def test_what_is_saved_is_what_they_load(name, tmp_path):
    case = parity.CASES[name]
    reference = parity.reference(case)
    reference.save_pretrained(tmp_path / "theirs")
    domain = parity.domain_of(case)
    model = case.model(**domain.sizes(tmp_path / "theirs") | case.own)
    kind, values = reference.config.model_type, domain.pretrained(tmp_path / "theirs")
    ends = {"end": parity.V - 1} if kind == "clip" else {}
    domain.save(tmp_path / "ours", model, values, kind, **ends)
    cls = type(reference)
    loaded, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mine, their = loaded.state_dict(), reference.state_dict()
    assert mine.keys() == their.keys()
    for key in their:
        a, b = mine[key].numpy(), their[key].numpy()
        if "position_embeddings" in key or (kind == "bart" and "embed_positions" in key):
            a, b = a[2:], b[2:]  # no text has the positions 0 and 1
        assert np.array_equal(a, b), key
    if ends:
        assert loaded.config.text_config.eos_token_id == reference.config.text_config.eos_token_id
    assert domain.sizes(tmp_path / "ours") == domain.sizes(tmp_path / "theirs")
