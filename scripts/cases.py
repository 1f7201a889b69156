"""The contests of scripts/bench.py: who does which work, on CPUs and on accelerators."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from common.data import fetch, made
from contest import Contender
from vision import resnet
from vision.data import pictures

OURS = "touchstone"
OPENCLIPART = pathlib.Path("/usr/share/openclipart/png")
SIDE = 224
SMALL = {"vocab_size": 8192, "width": 384, "layers": 6, "heads": 6, "hidden": 1536}


def _ours(path: str, words: Sequence[str], **high: int) -> Contender:
    overrides = [f"--config.{word}" for word in words]
    return Contender(OURS, "ours", {"config": path, "overrides": overrides, "high": high})


def _transformers(model: str, batch_size: int, settings: dict, **inputs) -> Contender:
    asked = {"model": model, "settings": settings, "inputs": inputs, "batch_size": batch_size}
    return Contender("transformers on torch", "transformers", asked)


def cnn(cpu: bool) -> list[Contender]:
    """32C3-MP2-64C3-MP2-64-10 on 28x28x1, Adam."""
    size = 128 if cpu else 4096
    path, words = "configs/vision/fashion_mnist.py:cnn", [f"train.batch_size={size}"]
    of = {"batch_size": size}
    return [
        _ours(path, words, image=256, label=10),
        Contender("flax", "flax_cnn", of),
        Contender("keras on jax", "keras_cnn", of | {"backend": "jax"}),
        Contender("keras on torch", "keras_cnn", of | {"backend": "torch"}),
        Contender("torch", "torch_cnn", of | {"compiled": False}),
        Contender("torch.compile", "torch_cnn", of | {"compiled": True}),
    ]


def resnet18(cpu: bool) -> list[Contender]:
    """ResNet-18 on 8 images of 224x224x3; ResNet-50 on 256 of them on an accelerator."""
    size, kind = (8, "resnet18") if cpu else (256, "resnet50")
    shape = resnet.SIZES[kind]
    words = [f"model.{name}={value}" for name, value in shape.items()]
    words += ["runtime.cpu_devices=2"] * cpu
    words += [f"train.batch_size={size}", "augment.resized_crop=None", "augment.flip=none"]
    variant = "float32" if cpu else "bfloat16"
    settings = {"layer_type": shape["block"], "depths": shape["stages"]}
    return [
        _ours(
            f"configs/vision/imagenet_resnet50.py:{variant}",
            [*words, "data.image_size=224"],
            image=256,
            label=1000,
        ),
        _transformers(
            "ResNetForImageClassification",
            size,
            settings | {"hidden_sizes": shape["widths"], "num_labels": 1000},
            pixel_values=[[3, 224, 224], 0],
            labels=[[], 1000],
        ),
    ]


def vit(cpu: bool) -> list[Contender]:
    """ViT-S/16 on 224x224x3; ViT-B/16 on an accelerator."""
    size, width = (8, 384) if cpu else (256, 768)
    words = [f"train.batch_size={size}", f"model.width={width}", f"model.heads={width // 64}"]
    words += [f"model.hidden={4 * width}", "augment.resized_crop=None", "data.image_size=224"]
    words += ["augment.flip=none", "augment.rand_augment_layers=0", "augment.mixup=None"]
    words += ["model.dtype=None"] * cpu
    settings = {"hidden_size": width, "num_attention_heads": width // 64}
    settings |= {"intermediate_size": 4 * width, "num_labels": 1000}
    return [
        _ours("configs/vision/imagenet_vit.py", words, image=256, label=1000),
        _transformers(
            "ViTForImageClassification",
            size,
            settings,
            pixel_values=[[3, 224, 224], 0],
            labels=[[], 1000],
        ),
    ]


def bert(cpu: bool) -> list[Contender]:
    """Masked language modelling on 32 rows of 128 tokens, 6 blocks of 384, dropout 0.1; BERT-base
    on 256 rows on an accelerator."""
    words, size, settings = ["loss.nsp=false", "data.length=128"], 256, {}
    vocabulary = 30522
    if cpu:
        size, vocabulary = 32, SMALL["vocab_size"]
        words += [f"model.{name}={SMALL[name]}" for name in ("width", "layers", "heads", "hidden")]
        words += [f"data.vocab_size={vocabulary}", "model.dtype=None"]
        settings = {"vocab_size": vocabulary, "hidden_size": 384, "intermediate_size": 1536}
        settings |= {"num_hidden_layers": 6, "num_attention_heads": 6}
    return [
        _ours("configs/lm/bert_base.py", [*words, f"train.batch_size={size}"], tokens=vocabulary),
        _transformers(
            "BertForMaskedLM",
            size,
            settings,
            input_ids=[[128], vocabulary],
            labels=[[128], vocabulary],
        ),
    ]


def gpt(cpu: bool) -> list[Contender]:
    """Causal language modelling on 8 rows of 256 tokens, 6 blocks of 384, no dropout; GPT-2 124M on
    16 rows of 1024 on an accelerator."""
    words, size, length, vocabulary = ["train.accumulate=1"], 16, 1024, 50257
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if cpu:
        size, length, vocabulary = 8, 256, SMALL["vocab_size"]
        words += [f"model.{name}={SMALL[name]}" for name in ("width", "layers", "heads", "hidden")]
        words += [f"data.vocab_size={vocabulary}", "model.dtype=None", f"data.length={length}"]
        settings |= {"vocab_size": vocabulary, "n_embd": 384, "n_layer": 6, "n_head": 6}
    return [
        _ours("configs/lm/gpt2_small.py", [*words, f"train.batch_size={size}"], tokens=vocabulary),
        _transformers(
            "GPT2LMHeadModel",
            size,
            settings,
            input_ids=[[length], vocabulary],
            labels=[[length], vocabulary],
        ),
    ]


def translate(cpu: bool) -> list[Contender]:
    """Translation of 16 rows of 128 source and 128 target tokens, 3 blocks of 256 a side, dropout;
    the base Transformer on 208 rows on an accelerator."""
    words, size, vocabulary, layers, width = ["loss.label_smoothing=None"], 208, 37000, 6, 512
    words += ["train.average=None", "evals.valid=None", "evals.test=None"]
    if cpu:
        size, vocabulary, layers, width = 16, SMALL["vocab_size"], 3, 256
        words += ["model.dtype=None", f"model.layers={layers}", f"model.width={width}"]
        words += ["model.heads=4", f"model.hidden={4 * width}", f"data.vocab_size={vocabulary}"]
    settings = {"vocab_size": vocabulary, "d_model": width, "pad_token_id": 0, "eos_token_id": 1}
    settings |= {"decoder_start_token_id": 0, "forced_eos_token_id": 1, "scale_embedding": True}
    for side in ("encoder", "decoder"):
        settings |= {f"{side}_layers": layers, f"{side}_attention_heads": width // 64}
        settings |= {f"{side}_ffn_dim": 4 * width}
    settings |= {"activation_function": "relu", "max_position_embeddings": 128}
    return [
        _ours(
            "configs/lm/transformer_wmt.py",
            [*words, f"train.batch_size={size}"],
            **dict.fromkeys(("source", "tokens", "targets"), vocabulary),
        ),
        _transformers(
            "MarianMTModel",
            size,
            settings,
            input_ids=[[128], vocabulary],
            labels=[[128], vocabulary],
        ),
    ]


def rnn(cpu: bool) -> list[Contender]:
    """The gradients of two LSTM layers of 512 on 32 rows of 128 inputs of 512; layers of 1024 on
    256 rows on an accelerator."""
    return _rnn("gradients", cpu)


def rnn_forward(cpu: bool) -> list[Contender]:
    """The same layers' outputs alone."""
    return _rnn("outputs", cpu)


def _rnn(what: str, cpu: bool) -> list[Contender]:
    size, width = (32, 512) if cpu else (256, 1024)
    of = {"what": what, "batch_size": size, "length": 128, "width": width, "layers": 2}
    return [
        Contender(f"{OURS}, {what}", "rnn_ours", of),
        Contender(f"torch, {what}", "rnn_torch", of),
    ]


def generate(cpu: bool) -> list[Contender]:
    """64 tokens behind 8 prompts of 32, greedily, with a cache; 6 blocks of 384."""
    del cpu
    shape = {"batch_size": 8, "prompt": 32, "new": 64}
    theirs = {"vocab_size": 8192, "n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 256}
    return [
        Contender(OURS, "generate_ours", {"settings": SMALL | {"max_length": 256}, **shape}),
        Contender("transformers on torch", "generate_transformers", {"settings": theirs, **shape}),
    ]


def input(cpu: bool) -> list[Contender]:
    """Shuffled batches of 128 of 60,000 images of 28x28 in the host's memory, read by threads, onto
    the device; torch's loader leaves them on the host."""
    del cpu
    settings = {"count": 60_000, "batch_size": 128, "workers": 0}
    return [
        Contender(OURS, "input_ours", settings),
        Contender("torch DataLoader", "input_torch", settings),
    ]


def input_files(cpu: bool) -> list[Contender]:
    """Shuffled uint8 batches of 128 of the pictures of `_pictures`, 224x224: ours as they were
    prepared, read by threads, onto the device; torchvision's `ImageFolder` decodes them, in two
    workers. Sixty batches at a time."""
    del cpu
    settings = {"folder": _pictures(), "batch_size": 128, "batches": 60}
    return [
        Contender(f"{OURS}, images:DIR", "files_ours", settings),
        Contender("torchvision ImageFolder", "files_torchvision", settings | {"workers": 2}),
    ]


def _pictures() -> str:
    """A folder of JPEGs of 224x224, made once: the 8,121 drawings of Debian's openclipart-png, a
    class for each of its folders, if it is installed; else 2,000 of noise, blurred."""
    drawn = sorted(OPENCLIPART.rglob("*.png"))
    kind = "openclipart" if drawn else "noise"
    path = pathlib.Path(fetch.data_dir(), f"bench-{kind}-{SIDE}")

    def build(into: pathlib.Path) -> None:
        rng = np.random.default_rng(0)
        for i in range(len(drawn) or 2000):
            if drawn:
                name = drawn[i].relative_to(OPENCLIPART).parts[0]
                try:
                    image = Image.fromarray(pictures.pixels(drawn[i], 3)[0])
                except pictures.Broken:
                    continue
            else:
                name = str(i % 10)
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
            (into / name).mkdir(exist_ok=True)
            image.resize((SIDE, SIDE)).save(into / name / f"{i:05d}.jpg", quality=90)

    made.folder(path, lambda at: at if at.is_dir() else None, build, f"the pictures of {kind}")
    return str(path)


def grown(cpu: bool, batch: int, length: int, depth: int, width: int) -> Contender:
    """A GPT of this size."""
    words = [f"train.batch_size={batch}", "train.accumulate=1", f"data.length={length}"]
    words += [f"model.max_length={length}", f"model.layers={depth}", f"model.width={width}"]
    words += [f"model.heads={width // 32}", f"model.hidden={4 * width}"]
    words += ["model.dtype=None"] * cpu
    return _ours("configs/lm/gpt2_small.py", [*words, "data.vocab_size=4096"], tokens=4096)


# Further contests of a case, each against its own first contender.
FURTHER = {"input": (input_files,), "rnn": (rnn_forward,)}
CASES = cnn, resnet18, vit, bert, gpt, rnn, translate, generate, input
STEPS = {case.__name__: case for case in CASES}
