"""A small run of every kind of model that is exported; `arg` is a key of MODELS, with ":real" the
same in a size that is used."""

import language_config
import ml_collections

from vision import resnet

TEXT = {"width": 32, "layers": 1, "heads": 2, "hidden": 64, "max_length": 16}
REAL_TEXT = {"width": 384, "layers": 6, "heads": 6, "hidden": 1536, "max_length": 128}
SAME = {"padding": "SAME"}
PATCHES = {"image_size": 8, "patch_size": 2}
# {model: (task, module, fields, those of a size that is used)}
MODELS = {
    "mlp": ("vision.classify", "vision.cnn:MLP", {"hidden": (8,)}, {"hidden": (512,)}),
    "cnn": ("vision.classify", "vision.cnn:CNN", SAME | {"widths": (4, 8)}, SAME),
    "resnet18": (
        "vision.classify",
        "vision.resnet:ResNet",
        resnet.SIZES["resnet18"] | {"stages": (1, 1), "widths": (4, 8), "stem_width": 4},
        resnet.SIZES["resnet18"],
    ),
    "vit": (
        "vision.classify",
        "vision.vit:ViT",
        PATCHES | {"width": 16, "layers": 1, "heads": 2, "hidden": 32},
        PATCHES | {"width": 384, "layers": 12, "heads": 6, "hidden": 1536},
    ),
    "bert": ("lm.classify", "lm.bert:Classifier", TEXT, REAL_TEXT),
    "mlm": ("lm.mlm", "lm.bert:Bert", TEXT, REAL_TEXT),
    "gpt": ("lm.clm", "lm.gpt:GPT", TEXT, REAL_TEXT),
}


def get_config(arg="mlp"):
    name, _, size = arg.partition("_")
    task, module, small, real = MODELS[name]
    data = {
        "vision.classify": {"name": "digits"},
        "lm.classify": {"length": 16, "tokenizer": "-"},
    }.get(task)
    text = language_config.get_config(task[3:]) if data is None else {"data": data}
    return ml_collections.ConfigDict(
        {
            "task": task,
            "model": {"module": module, **(real if size else small)},
            "data": dict(text["data"]),
            "evals": {"test": {"split": "test", "batch_size": 8}},
            "train": {"batch_size": 32, "duration": "1 steps"},
        }
    )
