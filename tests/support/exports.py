"""Runs to export, untrained with random weights, and the table of `python -m tests.measure
export`."""

import contextlib
import json
import pathlib
import sys
import tempfile

import jax
import language_config
import numpy as np
from helpers import ROOT, load

from common import predict
from common.runs import checkpoint, facts, workdir
from common.serving import artifact, export, read
from common.training import program
from lm.data import tokenizer

CONFIG = ROOT / "tests/support/exports_config.py"
FORMS = "onnx", "openvino"
NAMES = ("cnn", "resnet18", "vit", "bert", "mlm", "gpt")


def data(name: str, folder: pathlib.Path) -> dict[str, str]:
    """Overrides that name the data of a model, which are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "bert":
        numbers = language_config.NUMBERS
        texts = [" ".join((numbers * 2)[i % 10 : i % 10 + 3 + i % 7]) for i in range(200)]
        lines = [json.dumps({"text": t, "label": t.split()[0]}) for t in sorted(set(texts))]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        tokenizer.train("wordpiece", 80, texts).save(str(folder / "tokenizer.json"))
        named = {"data.name": f"file:{folder / 'texts.jsonl'}"}
        return named | {"data.tokenizer": str(folder / "tokenizer.json")}
    if name in ("mlm", "gpt"):
        texts = folder / "texts"
        corpus = f"folder:{texts}" if texts.exists() else language_config.write(texts)
        return {"data.name": corpus, "data.folder": str(folder / "data")}
    return {}


def begun(name: str, folder: pathlib.Path, **overrides) -> str:
    """A run that has taken no step; returns its workdir."""
    own = data(name.partition("_")[0], folder / "data")
    config = load(f"{CONFIG}:{name}", **own, **overrides)
    prepared, run = program.prepare(config), folder / "run"
    fingerprints = {name: source.fingerprint for name, source in prepared.task.sources.items()}
    with jax.set_mesh(prepared.layout.mesh):
        state = prepared.create(prepared.hypers)
        rng = np.random.default_rng(0)
        wide = lambda x: jax.device_put(
            rng.normal(size=x.shape).astype(x.dtype) * _scale(x), x.sharding
        )
        state = state._replace(params=jax.tree.map(wide, state.params))
        workdir.claim(run, config, {"data": fingerprints}, write=True)
        facts.write(run, prepared.task)
        with contextlib.closing(checkpoint.Checkpoints(run, prepared.saving)) as checkpoints:
            checkpoints.save(0, state)
    return str(run)


def _scale(x) -> float:
    return 0.3 if x.ndim < 2 else np.sqrt(2 / np.prod(x.shape[:-1]))


def exported(run: str, to, forms=(), inputs=(), **options) -> dict:
    """Exports a run; returns the manifest."""
    return export.export(run, predict.load(run), to, options, inputs, forms)


def beside_transformers(name: str, folder: pathlib.Path) -> float:
    """The largest difference of an export's logits from those of `transformers` on its folder
    `huggingface`; the tokens of texts must be the same."""
    import torch
    import transformers

    kinds = {"gpt": "CausalLM", "mlm": "MaskedLM", "bert": "SequenceClassification"}
    loader = getattr(transformers, f"AutoModelFor{kinds.get(name, 'ImageClassification')}")
    theirs = loader.from_pretrained(folder / "huggingface").eval()
    functions, rng = read.load(folder), np.random.default_rng(1)
    if name not in kinds:
        images = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
        processor = transformers.AutoImageProcessor.from_pretrained(folder / "huggingface")
        pixels = processor(list(images), return_tensors="pt", input_data_format="channels_last")
        ours = functions["predict"]({"image": images})["logits"]
    else:
        tokens = rng.integers(5, 60, (3, 9)).astype(np.int32)
        pixels = {"input_ids": torch.tensor(tokens).long()}
        more = {
            "bert": {"segments": 0 * tokens + 1, "types": 0 * tokens},
            "mlm": {
                "segments": 0 * tokens + 1,
                "picked": 0 * tokens + np.arange(9, dtype=np.int32),
            },
        }
        given = {"tokens": tokens, **more.get(name, {})}
        ours = functions["predict" if name == "bert" else "logits"](given)["logits"]
        made, options = artifact.predictor(folder, artifact.manifest_of(folder))
        text = "one [MASK] three four" if name == "mlm" else "one two three four"
        (row,) = made.read(text, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "huggingface")
        ids = tokenizer(text).input_ids
        assert ids == row["tokens"].tolist()[-len(ids) :]
    with torch.no_grad():
        logits = theirs(**pixels).logits.numpy()
    return artifact.difference({"logits": logits}, {"logits": ours})


def main() -> int:
    """Prints the table."""
    forms = ["huggingface"]
    with contextlib.suppress(ImportError):
        import jax2onnx  # noqa: F401

        forms += FORMS
    heads = "model", "parameters", "function", "bytes", "differs by", "ONNX", "OpenVINO"
    print(f"| {' | '.join((*heads, 'transformers'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            own = forms if name != "cnn" else [x for x in forms if x != "huggingface"]
            run = begun(f"{name}_real", folder)
            manifest = exported(run, folder / "to", own, **({"tokens": 8} if name == "gpt" else {}))
            hub = None if name == "cnn" else beside_transformers(name, folder / "to")
            shown = "logits" if "logits" in manifest["functions"] else "predict"
            for function, entry in manifest["functions"].items():
                size = (folder / "to" / f"{function}.stablehlo").stat().st_size
                told = [entry["difference"]]
                told += [
                    manifest.get(form, {}).get(function, {}).get("difference") for form in FORMS
                ]
                told.append(hub if function == shown else None)
                cells = name, f"{manifest['parameters']:,}", f"`{function}`", f"{size:,}"
                cells = *cells, *("" if x is None else f"{x:.0e}" for x in told)
                print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
