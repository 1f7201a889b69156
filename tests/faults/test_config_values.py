"""Values of a config that nothing can be made of: one line that names the key, exit code 2."""

import re

import pytest
from faults import refused
from helpers import DIGITS, exit_code, load

from common.errors import BadInput

# (override of configs/vision/digits.py:mlp, what the line says)
OVERRIDES = [
    # Durations, and numbers of steps.
    ("train.duration=1e400 steps", r"train\.duration: '1e400 steps' is more than 2,147,483,647"),
    ("train.duration=5e9 steps", r"train\.duration: '5e9 steps' is more than 2,147,483,647"),
    ("train.duration=2147483648 steps", r"train\.duration: .* more than 2,147,483,647 steps"),
    ("train.duration=1e400 epochs", r"train\.duration: .* more than"),
    ("train.duration=99999999999999999999999 examples", r"train\.duration: .* more than"),
    ("train.duration=1e-400 epochs", r"train\.duration: '1e-400 epochs' is 0 steps"),
    ("train.duration=. steps", r"train\.duration: '\. steps' is not a duration: '\.' is not a num"),
    ("train.duration=", r"train\.duration: '' is not a duration"),
    ("evals.test.every=1e400 epochs", r"evals\.test\.every: .* more than"),
    ("optim.warmup=1e400 steps", r"optim\.warmup: .* more than"),
    ("optim.lookahead=1e400 steps", r"optim\.lookahead: .* more than"),
    ("train.log_every=1e400%", r"train\.log_every: .* more than"),
    ("train.log_every=5e9 steps", r"train\.log_every: .* more than"),
    ("checkpoint.every=1e400 examples", r"checkpoint\.every: .* more than"),
    ("train.steps_per_call=5000000000", r"train\.steps_per_call: 5000000000 is not in 1 to"),
    ("train.stop.patience=100000000000000000000", r"stop\.patience: 1000.* more than 64 bits"),
    ("runtime.profile=0:99999999999999999999", r"runtime\.profile: .*'10:20'"),
    ("runtime.profile=0:9999999999", r"runtime\.profile: no run has 9,999,999,999 steps"),
    ("runtime.profile=5", r"runtime\.profile: '5'; write the steps as '10:20'"),
    # Numbers out of range.
    ("optim.lr=nan", r"optim\.lr: nan is not a finite number"),
    ("optim.lr=-inf", r"optim\.lr: -inf is not a finite number"),
    ("optim.lr=1e400", r"optim\.lr: inf is not a finite number"),
    ("optim.lr=1e39", r"optim\.lr: 1e\+39 is out of the range of a 32-bit float"),
    ("optim.lr=1e-60", r"optim\.lr: 1e-60 is out of the range of a 32-bit float"),
    ("optim.direction.eps=nan", r"optim\.direction\.eps: nan is not a finite number"),
    ("optim.final=inf", r"optim\.final: inf is not a finite number"),
    ("model.dropout=nan", r"model\.dropout: nan is not a finite number"),
    ("loss.label_smoothing=nan", r"loss\.label_smoothing: nan is not a finite number"),
    ("train.average=nan", r"train\.average: nan is not a finite number"),
    ("train.stop.min_delta=nan", r"train\.stop\.min_delta: nan is not a finite number"),
    ("seed=-1", r"config\.seed: -1 is not in \[0, 2\^32\)"),
    ("seed=4294967296", r"config\.seed: 4294967296 is not in \[0, 2\^32\)"),
    ("seed=", r"--config\.seed: '' does not fit"),
    ("train.batch_size=0", r"train\.batch_size: 0 is not a positive number of examples up to"),
    ("train.batch_size=-1", r"train\.batch_size: -1 is not a positive number"),
    ("train.batch_size=3000000000", r"train\.batch_size: 3000000000 is not a positive number"),
    ("train.batch_size=100000000000000000000", r"train\.batch_size: 1000.* more than 64 bits"),
    ("evals.test.batch_size=0", r"evals\.test\.batch_size: 0 is not a positive number"),
    ("evals.test.batch_size=4294967296", r"evals\.test\.batch_size: 4294967296 is not a positive"),
    ("data.workers=10000000000", r"data\.workers: 10000000000 is not in 0 to 1024"),
    ("data.workers=-1", r"data\.workers: -1 is not in 0 to 1024"),
    ("runtime.cpu_devices=0", r"runtime\.cpu_devices: 0 is not in 1 to 4096"),
    ("runtime.cpu_devices=10000000000", r"runtime\.cpu_devices: 10000000000 is not in 1 to 4096"),
    ("mesh.data=10000000000", r"config\.mesh: 10000000000 x"),
    ("checkpoint.keep_latest=100000000000000000000", r"keep_latest: 1000.* more than 64 bits"),
    # Sizes that make no model.
    ("model.hidden=(0,)", r"model\.hidden: 0 is not positive"),
    ("model.hidden=(-1,)", r"model\.hidden: -1 is not positive"),
    ("model.hidden=(100000000000000000000,)", r"model\.hidden: 1000.* more than 64 bits"),
    ("model.hidden=(1000000000000,)", r"model\.hidden: .*1000000000000 is too large a size"),
    ("augment.resized_crop=100000000000", r"augment\.resized_crop: 100000000000 is not in \[1, "),
    ("augment.crop_padding=1000000000", r"augment\.crop_padding: 1000000000 is not in \[0, "),
    ("augment.rand_augment_layers=1000000000", r"rand_augment_layers: 1000000000 is not in \[0, "),
    # Names.
    ("task=", r"config\.task: '' is not an import path; write 'vision\.classify'"),
    ("task=.", r"config\.task: '\.' is not an import path"),
    ("task=vision.", r"config\.task: 'vision\.' is not an import path"),
    ("task=a b", r"config\.task: 'a b' is not an import path"),
    ("task=vision", r"config\.task: 'vision' has no sections"),
    ("task=vision.classify.x", r"config\.task: there is no module 'vision\.classify\.x'"),
    ("model.module=", r"model\.module: '' is not 'package\.module:Class'"),
    ("model.module=vision.cnn", r"model\.module: 'vision\.cnn' is not 'package\.module:Class'"),
    ("model.module=vision.cnn:", r"model\.module: 'vision\.cnn:' is not 'package\.module:Class'"),
    ("model.module=:MLP", r"model\.module: ':MLP' is not 'package\.module:Class'"),
    ("model.module=vision.cnn:MLP.x", r"model\.module: 'vision\.cnn:MLP\.x' is not"),
    ("model.module=.cnn:MLP", r"model\.module: '\.cnn' is not an import path"),
    ("model.module=vision:MLP", r"model\.module: 'vision:MLP': no such class"),
    ("model.module=vision.cnn:MPL", r"model\.module: .* no such class; did you mean 'MLP'"),
    ("model.module=vision.cnn:math", r"model\.module: 'vision\.cnn:math' is not a linen module"),
    ("evals.test.kind=.", r"evals\.test\.kind: '\.' is not an import path"),
    ("evals.test.kind=no_such_module", r"evals\.test\.kind: there is no module 'no_such_module'"),
    ("optim.name=", r"optim\.name: unknown ''"),
    ("optim.freeze=('(',)", r"optim\.freeze: '\(' is not a regular expression"),
    ("optim.multipliers=(('[', 1.0),)", r"optim\.multipliers: '\[' is not a regular expression"),
    ("data.name=", r"data\.name: unknown ''"),
    ("data.name=a\0b", r"data\.name: 'a\\x00b' holds a character that no text has"),
    ("runtime.cache=/dev/null", r"runtime\.cache: /dev/null is a device, not a folder"),
    ("=3", r"unknown argument '--config\.=3'"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "says"), OVERRIDES, ids=[o for o, _ in OVERRIDES])
def test_an_override_that_fits_nothing_is_one_line(override, says, capsys):
    words = "--config", f"{DIGITS}:mlp", "--dry-run", f"--config.{override}"
    refused(capsys, "train", *words, says=says)


# (field of a model, what the line says)
FIELDS = [
    ("vision.cnn:CNN", "widths=(0,)", r"model\.widths: 0 is not positive"),
    ("vision.cnn:CNN", "kernel=-3", r"model\.kernel: -3 is not positive"),
    ("vision.cnn:CNN", "kernel=100", r"too many for images of 8 x 8 pixels"),
    ("vision.resnet:ResNet", "stages=(1000000000,1,1,1)", r"model\.stages: .*at most 10000 blocks"),
    ("vision.resnet:ResNet", "stem_width=0", r"stem of width 0"),
    ("vision.vit:ViT", "layers=1000000000", r"model\.layers: 1000000000 is too many"),
    ("vision.vit:ViT", "heads=0", r"model\.heads: 0 is not positive"),
    ("vision.airbench:Airbench", "widths=(1,1,1,1,1)", r"model\.widths: 5 blocks are too many"),
    ("vision.airbench:Airbench", "whitening=50", r"makes no model .* with whitening=50: .*"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("optim.name=muon", "optim.direction.ns_steps=0"), r"ns_steps: 0 is not in 1 to 100"),
        (
            ("optim.name=muon", "optim.direction.ns_steps=1000000000"),
            r"ns_steps: 1000000000",
        ),
        (
            ("evals.test.kind=common.evaluators.calibration", "evals.test.bins=100000000000"),
            r"bins = 100000000000 is not positive, or more than 65,536",
        ),
    ],
)
def test_a_number_of_a_chosen_section_is_in_range(words, says, capsys):
    words = (f"--config.{word}" for word in words)
    refused(capsys, "train", "--config", f"{DIGITS}:mlp", "--dry-run", *words, says=says)


@pytest.mark.parametrize(("module", "field", "says"), FIELDS)
def test_fields_that_make_no_model_are_one_line(module, field, says, capsys):
    words = f"--config.model.module={module}", f"--config.model.{field}"
    refused(capsys, "train", "--config", f"{DIGITS}:mlp", "--dry-run", *words, says=says)


def test_a_message_is_one_line_whatever_it_quotes():
    assert str(BadInput("a\nb\r\nc\u2028d")) == "a b c d"
    assert not re.search(r"[\n\r]", str(BadInput("x\n\n")))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_first_and_the_last_seed_are_seeds(seed):
    assert load(f"{DIGITS}:mlp", seed=seed)["seed"] == seed


@pytest.mark.slow
def test_the_longest_run_can_be_planned(capsys):
    words = "--config", f"{DIGITS}:mlp", "--config.train.duration=2147483647 steps"
    assert exit_code("train", *words, "--dry-run") == 0
    assert "2147483647 steps of" in capsys.readouterr().out
