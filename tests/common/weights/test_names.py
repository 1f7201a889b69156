"""Tables of names: what goes there comes back, and every row is of use."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from common.weights import family, names
from lm import weights as texts
from vision import weights as images

# Of several with one name, that which is written.
FAMILIES = {each.name: each for each in reversed((*texts.FAMILIES, *images.FAMILIES))}


def filled(pattern: str) -> str:
    for i, letter in enumerate("ijk", 3):
        pattern = pattern.replace(f"{{{letter}}}", str(i)).replace(f"{{{letter}+1}}", str(i + 1))
    return pattern


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_has_one_path_and_every_path_one_name(name):
    for table in FAMILIES[name].names:
        heres, theres = [], []
        for here, there, kind in table.rows:
            for leaf in names.KINDS[kind]:
                paths = ["/".join(filter(None, (filled(here), end))) for end in leaf.here]
                name_there = ".".join(filter(None, (filled(there), leaf.there)))
                for path in paths:
                    found = names.name_of(table, path)
                    assert found in (name_there, table.prefix + name_there)
                    assert found.startswith(table.heads) == name_there.startswith(table.heads)
                heres += paths
                theres.append(name_there)
        assert len(set(heres)) == len(heres)
        assert len(set(theres)) == len(theres)
        known, unknown = names.recognised(table, dict.fromkeys(theres) | {"x.y": None})
        assert set(known) == set(theres)
        assert unknown == ("x.y",)


def test_numbers_are_written_one_way():
    table = names.Names((("block_{i}/mlp", "layer.{i+1}.mlp", "dense"),))
    assert names.name_of(table, "block_0/mlp/kernel") == "layer.1.mlp.weight"
    for name in ("layer.0.mlp.weight", "layer.01.mlp.weight", "layer.٣.mlp.weight", "layer..mlp"):
        assert names.recognised(table, {name: None}) == ({}, (name,))
    spellings = {"layer.1.mlp.bias": None, "layer.1.mlp.beta": None}
    with pytest.raises(BadInput, match="occurs under two names"):
        names.recognised(table, spellings)


@pytest.mark.parametrize("kind", names.KINDS)
def test_a_tensor_of_any_kind_comes_back(kind):
    class Model:
        vocab_size, patch_size = 130, 2

    rng = np.random.default_rng(0)
    for leaf in names.KINDS[kind]:
        shape = {0: (), 1: (6,), 2: (130, 6), 3: (1, 5, 6), 4: (6, 3, 2, 2)}[leaf.dims]
        x = np.asarray(rng.normal(size=shape), np.float32)
        x = x[:1] if kind == "row" else x
        if kind == "offset_table":
            x[:2] = 0
        back = leaf.theirs(leaf.ours(x), Model)
        assert back.shape == x.shape
        assert (back == x).all()


def test_a_family_says_what_it_has_by_fields_that_its_model_has():
    for each in FAMILIES.values():
        own = family.names_of(each.model)
        assert {*each.fields, *each.fixed, *each.varies} <= own, each.name


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.architectures])
def test_defaults_are_those_there(name):
    """A config.json leaves out what is the default there."""
    transformers = pytest.importorskip("transformers")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    config = json.loads(json.dumps(mapping[name]().to_dict()))
    domain = texts if FAMILIES[name] in texts.FAMILIES else images
    every = family.describe(config, domain.FAMILIES, "there").fields
    assert family.describe({"model_type": name}, domain.FAMILIES, "there").fields == every


def test_a_config_comes_back():
    for each in FAMILIES.values():
        if not each.architectures:
            continue
        own = {k: 3 for k in ("num_classes",) if k in family.names_of(each.model)}
        fields = family.describe({"model_type": each.name}, FAMILIES.values(), "there").fields
        model = each.model(**fields | own)
        written = json.loads(json.dumps(family.config_of(each, model)))
        again = family.describe(written, FAMILIES.values(), "there")
        assert again.family is each
        assert again.fields == fields


def test_parameter_counts_are_the_published_ones():
    for name, config, count in (
        ("bert", {}, 109_482_240),  # with its pooler
        ("gpt2", {}, 124_439_808),
    ):
        each = FAMILIES[name]
        fields = family.describe({"model_type": name} | config, texts.FAMILIES, "there").fields
        model = each.model(**fields)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        pooler = 768 * 769 if name == "bert" else 0
        assert tree.count(shapes) - model.padding() + pooler == count
