"""Every config in the tree trains two steps on fabricated data, is built with traced numbers, and
has a golden.

A golden is a page that a reviewer can read: parameter shapes, decay, multipliers, partition rows,
and the whole completed config. `pytest tests/test_configs.py --update-goldens` writes them anew.
"""

import importlib
import json
import types

import corpus
import fabricated
import jax
import numpy as np
import PIL.Image
import pytest
from helpers import ROOT, load

from common import config as configs
from common.data import splits
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure
from common.nn.layers import identity
from common.planning import compiled, describe
from common.sections import call
from common.training import optim, program

VARIANTS = {
    "vision/digits": ("cnn", "mlp"),
    "vision/fashion_mnist": (
        *("cnn", "smoke", "small", "medium", "to_90", "to_92", "to_93", "large"),
    ),
    "vision/fashion_mnist_mae": ("pretrain", "probe", "finetune"),
    "vision/mae_b16": ("",),
    "vision/cifar10": ("resnet18", "wrn_28_10", "airbench"),
    "vision/imagenet_resnet50": ("float32", "bfloat16"),
    "vision/imagenet_vit": ("90", "300"),
    "vision/emoji_clip": ("",),
    "vision/siglip_b16": ("",),
    "lm/bert_sotu": ("",),
    "lm/bert_base": ("phase1", "phase2"),
    "lm/crammed_bert": ("",),
    "lm/gpt_sotu": ("llama", "gpt2"),
    "lm/rnn_sotu": ("",),
    "lm/gpt2_small": ("gpt2", "llama"),
    "lm/gpt_7b": ("",),
    "lm/finetune_reviews": ("",),
    "lm/finetune_topics": ("",),
    "lm/tag": ("",),
    "lm/answer": ("",),
    "lm/g2p_cmudict": ("transformer", "lstm"),
    "lm/translate_bible": ("",),
    "lm/translate_help": ("",),
    "lm/transformer_wmt": ("",),
    "lm/t5_small": ("scratch", "published"),
}
NAMES = [f"{file}:{arg}".rstrip(":") for file, args in VARIANTS.items() for arg in args]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fabricated sets of the real ones' names and shapes."""
    path = tmp_path_factory.mktemp("data")
    fabricated.prepare(path, "cifar10", (32, 32, 3), {"train": 600, "test": 100})
    fabricated.prepare(path, "fashion_mnist", (28, 28, 1), {"train": 300, "test": 1000})
    sizes = {"train": 300, "validation": 20}
    fabricated.prepare(path, "imagenet2012", (None, None, 3), sizes, classes=1000)
    corpus.write(path / "texts")
    return path


def captioned(folder):
    """The table of a set of pictures with texts."""
    path = folder / "captions.jsonl"
    if not path.exists():
        PIL.Image.new("RGB", (8, 8)).save(folder / "grey.png")
        rows = [{"path": "grey.png", "text": f"picture {i}"} for i in range(40)]
        rows = [row | {"split": "train" if i < 24 else "test"} for i, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(name: str) -> dict:
    """The config as its file says it, completed."""
    file, _, arg = name.partition(":")
    return load(f"{ROOT}/configs/{file}.py{':' if arg else ''}{arg}")


def built(name: str, folder) -> dict:
    """The config on fabricated data of the same shapes."""
    config = written(name)
    data, others = config["data"], {"data.folder": str(folder)}
    others |= {"data.workers": 0} if "workers" in data else {}
    if "imagenet" in name or "g2p" in name:  # their warmups are longer than these runs
        others |= {"optim.warmup": "5%"}
    others |= {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}
    if config["task"] == "vision.contrast.task":
        own = corpus.tokenizer(folder, "wordpiece", config["data"]["vocab_size"])
        others |= {"data.name": f"captions:{captioned(folder)}", "data.tokenizer": own}
        others |= {"train.batch_size": 16}  # of 24 pairs
        others |= {"data.train": "train"}
        for key in config["evals"]:
            others[f"evals.{key}.split"] = "test"
    if config["init"]["path"]:
        others |= {"init.path": "", "init.skip": ()}
    if name.startswith("lm/"):
        classes = {"reviews": 2, "topics": 11}.get(data["name"])
        kind, size = data["tokenizer"], data.get("vocab_size", 30522)
        kind = "wordpiece" if kind == "minilm" else kind
        trains = kind in ("wordpiece", "bpe")
        tokenizer = corpus.tokenizer(folder, kind, size) if trains else str(folder / kind)
        own = {"lm.tag": corpus.tagged, "lm.answer": corpus.questions}
        own = own.get(config["task"], corpus.pairs if "target" in data else None)
        texts = own(folder) if own else f"folder:{folder / 'texts'}"
        texts = corpus.labelled(folder, classes) if classes else texts
        others |= {"data.name": texts, "data.tokenizer": tokenizer}
        if "target" in data:
            own_kinds = kind in ("characters", "t5_small")  # both have <pad>
            others |= {"data.tokenizer": "characters"} if own_kinds else {}
            others |= {"data.source": "source", "data.target": "target"}
        for key, section in config["evals"].items():  # the slices are of sets that are large
            split = section["split"].split("[")[0]
            others[f"evals.{key}.split"] = "valid" if split == "validation" else split
    return laws.changed(config, **others)


def test_no_config_is_forgotten():
    own = (ROOT / "configs").glob("*/*.py")  # the template has tests of its own
    files = {str(p.relative_to(ROOT / "configs"))[:-3] for p in own}
    assert {f for f in files if not f.endswith("__init__")} == set(VARIANTS)


NARROW = {"model.widths": (8, 8, 8)}
SMALL_IMAGES = {"data.image_size": 40, "augment.resized_crop": 32}
RESNET = SMALL_IMAGES | {"model.stages": (1, 1), "model.widths": (8, 16)}
VIT = SMALL_IMAGES | {"model.layers": 1, "model.image_size": 32}
# Too large for every day: what takes long, and how to make it trainable here.
LARGE = {
    "lm/bert_sotu": {},
    "vision/fashion_mnist:cnn": {},
    **{f"vision/fashion_mnist:{name}": NARROW for name in ("small", "medium")},
    **{f"vision/fashion_mnist:{name}": NARROW for name in ("to_90", "to_92", "to_93")},
    "vision/fashion_mnist:large": NARROW | {"model.stages": (1, 1, 1)},
    **{f"vision/fashion_mnist_mae:{name}": {} for name in ("pretrain", "probe", "finetune")},
    "vision/mae_b16": SMALL_IMAGES | {"model.layers": 1, "model.decoder_layers": 1},
    "vision/cifar10:resnet18": {"model.widths": (8, 8, 8, 8)},
    "vision/cifar10:wrn_28_10": NARROW | {"model.stages": (1, 1, 1)},
    "vision/cifar10:airbench": NARROW,
    "vision/imagenet_resnet50:float32": RESNET,
    "vision/imagenet_resnet50:bfloat16": RESNET,
    "vision/imagenet_vit:90": VIT,
    "vision/imagenet_vit:300": VIT,
    "vision/emoji_clip": {},
    "vision/siglip_b16": {"model.image_layers": 1, "model.text_layers": 1},
    "lm/bert_base:phase1": {"model.layers": 1, "data.length": 32},
    "lm/bert_base:phase2": {"model.layers": 1, "data.length": 32},
    "lm/crammed_bert": {"model.layers": 1, "data.length": 32},
    "lm/gpt2_small:gpt2": {"model.layers": 1, "data.length": 32},
    "lm/gpt2_small:llama": {"model.layers": 1, "data.length": 32},
    "lm/gpt_7b": {
        "model.layers": 1,
        "model.width": 64,
        "model.heads": 4,
        "model.hidden": 96,
        "data.length": 32,
    },
    "lm/gpt_sotu:gpt2": {},
    "lm/gpt_sotu:llama": {},
    "lm/rnn_sotu": {"data.length": 32, "model.truncation": 16},
    "lm/finetune_reviews": {"model.layers": 1},
    "lm/finetune_topics": {"model.layers": 1},
    "lm/tag": {"model.layers": 1, "data.length": 32},
    "lm/answer": {
        "model.layers": 1,
        "data.length": 32,
        "data.question_length": 8,
        "data.stride": 8,
    },
    "lm/g2p_cmudict:transformer": {"model.layers": 1},
    "lm/g2p_cmudict:lstm": {"model.width": 32},
    "lm/translate_bible": {"model.layers": 1, "data.length": 32},
    "lm/translate_help": {"model.layers": 1, "data.length": 32},
    "lm/transformer_wmt": {"model.layers": 1, "data.length": 32},
    "lm/t5_small:scratch": {"model.layers": 1, "data.length": 32},
    "lm/t5_small:published": {"model.layers": 1, "data.length": 32},
}
# Of the task of another, with another set or size.
ALIKE = {"lm/translate_bible", "lm/translate_help", "lm/transformer_wmt"}
ALIKE |= {"lm/t5_small:scratch", "lm/t5_small:published"}
MARKS = dict.fromkeys(LARGE, pytest.mark.slow)
MARKS |= {name: (pytest.mark.slow, pytest.mark.measure("configs")) for name in ALIKE}
SOME_SLOW = [pytest.param(name, marks=MARKS.get(name, ())) for name in NAMES]
# Their steps, in a small size, are tests of their tasks.
TRAINED = {"vision/emoji_clip", "vision/siglip_b16", "vision/mae_b16"}
TRAINED |= {f"vision/fashion_mnist_mae:{name}" for name in VARIANTS["vision/fashion_mnist_mae"]}


@pytest.mark.parametrize("name", [each for each in SOME_SLOW if each.values[0] not in TRAINED])
def test_a_config_trains_two_steps(name, folder, compiled_in_haste):
    quick = {"train.batch_size": 16, "train.accumulate": 1, **LARGE.get(name, {})}
    made = program.prepare(laws.changed(built(name, folder), **quick), jax.devices()[:1])
    losses, state = measure.train_losses(made, 2)
    assert all(0 < loss < 20 for loss in losses)
    assert int(state.step) == 2
    assert made.update._cache_size() == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_trained_on_and_evaluated(name):
    config, sizes = written(name), {"train": 1_000_000}
    rows = lambda split: {
        row for _, at in splits.ranges(split, sizes, name) for row in range(at.start, at.stop)
    }
    held = [section["split"] for section in config["evals"].values()]
    held = [split for split in held if split.startswith("train")]
    trained = rows(config["data"]["train"]) if held else set()
    assert all(trained.isdisjoint(rows(split)) for split in held)


@pytest.mark.parametrize("name", SOME_SLOW)
def test_a_config_is_built_with_traced_numbers(name, folder):
    config = laws.changed(built(name, folder), **LARGE.get(name, {}))
    module = program.task_module(config["task"])
    sources = module.sources(config)

    def build(values):
        changed = configs.substitute(config, values)
        task = module.make(changed, sources, lambda x, *names: x)
        arguments = 100, lambda text, where: 1, changed["optim"]["direction"]
        rate = call(optim.make_optimizer, changed["optim"], *arguments).learning_rate(0)
        return rate, task.init(jax.random.key(0))[0]

    jax.eval_shape(build, {k: float(v) for k, v in configs.traced(config).items() if k != "seed"})


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=MARKS[n]) for n in LARGE if n not in TRAINED]
)
def test_a_config_of_its_own_size_keeps_the_contract(name, folder):
    program.prepare(built(name, folder), jax.devices()[:1])


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_its_golden(name, folder, request):
    config = built(name, folder)
    module = program.task_module(config["task"])
    task = module.make(config, module.sources(config), identity)
    # Of a Program what the table shows: preparing one traces all of the model several times.
    like = types.SimpleNamespace(params=jax.eval_shape(task.init, jax.random.key(0))[0])
    optimizer = types.SimpleNamespace(live=identity)  # of all parameters
    made = types.SimpleNamespace(config=config, task=task, like=like, optimizer=optimizer)
    lines = [f"{k} = {json.dumps(v)}" for k, v in sorted(configs.flatten(written(name)).items())]
    text = f"{describe.parameter_table(made)}\n" + "\n".join(lines) + "\n"
    path = ROOT / f"tests/goldens/{name.replace('/', '_').replace(':', '_')}.txt"
    if request.config.getoption("--update-goldens"):
        path.write_text(text)
    assert path.exists(), "no golden: pytest tests/test_configs.py --update-goldens"
    assert text == path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "warmup", "rate"),
    [
        ("imagenet_resnet50:float32", 250_228, 12_511, 0.2),
        ("imagenet_resnet50:bfloat16", 62_557, 3_128, 0.8),
        ("imagenet_vit:90", 111_477, 10_000, 1e-3),
    ],
)
def test_an_imagenet_run_is_as_long_as_published(name, steps, warmup, rate):
    # Flax's example: 250,199 and 62,499 steps; Beyer et al. 2022: 90 epochs of 1024.
    made = compiled.outlined_program(written(f"vision/{name}"), jax.devices()[:1])
    assert made.plan.total == pytest.approx(steps, abs=1)
    rates = made.optimizer.learning_rate(np.arange(warmup + 2))
    assert np.argmax(rates) == pytest.approx(warmup - 1, abs=2)
    assert float(rates.max()) == pytest.approx(rate)


@pytest.mark.parametrize("file", VARIANTS)
def test_a_sweep_yields_overrides_that_fit(file, folder):
    module = importlib.import_module(f"configs.{file.replace('/', '.')}")
    if not hasattr(module, "sweep"):
        return
    for overrides in module.sweep():
        load(f"{ROOT}/configs/{file}.py", **overrides)


@pytest.mark.parametrize("file", VARIANTS)
def test_an_unknown_variant_is_refused(file):
    with pytest.raises(BadInput, match="nonsense"):
        load(f"{ROOT}/configs/{file}.py:nonsense")
