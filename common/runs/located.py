"""The paths in a config: absolute in config.json, so that what starts from a workdir (evaluation, a
repetition, text from a prompt) finds the data from any folder.

In memory, and among the processes of a run, paths stay as they were given: a folder of the project
may be another one on each host. A relative path agrees with an absolute one that ends with it; that
both hold the same data is for the fingerprints to say.
"""

import os
import re

from common import inputs
from common.config import changed, differing, flatten
from common.errors import BadInput
from common.runs.files import absolute

TWO = "pairs:"  # begins a `data.name` that may be of two files, "pairs:A,B"
KINDS = "folder", "file", "images", "captions", "pairs"  # of `data.name`: "folder:DIR"
# Of tokenizers, which are no paths: they are trained.
WORDS = "wordpiece", "bpe", "characters", "words"
TOKENIZERS = "data.tokenizer", "data.target_tokenizer"
NAMED = *TOKENIZERS, "init.path", "loss.teacher"  # which may be names of prepared ones
KEYS = "data.name", "data.folder", *NAMED
OF_EVALUATOR = re.compile(r"evals\.[^.]+\.(data|names)")  # as data.name, and a file


def _like(key: str) -> str:
    """The key whose values are of the same kind: those of evaluators are as those of the run."""
    of_evaluator = OF_EVALUATOR.fullmatch(key)
    return {"data": "data.name", "names": "init.path"}[of_evaluator[1]] if of_evaluator else key


def _split(key: str, value) -> tuple[str, str] | None:
    """(what stands before the path, the path) of a value; None if it is no path of this machine."""
    key = _like(key)
    if key not in KEYS or not isinstance(value, str) or "://" in value:
        return None
    kind, colon, path = value.partition(":") if key == "data.name" else ("", "", value)
    named = (key == "data.name" and kind not in KINDS) or (key in TOKENIZERS and value in WORDS)
    return None if named or not path else (kind + colon, path)


def _paths(before: str, path: str) -> list[str]:
    """The paths of a value, of which a set of pairs may have two."""
    two = path.split(",")
    return two if before == TWO and len(two) == 2 and not _present(path) else [path]


def settled(config: dict) -> dict:
    """A config, as nested dicts, with the paths of its data and weights absolute. Names of prepared
    ones stay names."""
    absolutes = {}
    for key, value in flatten(config).items():
        parts = _split(key, value)
        if parts is None:
            continue
        before, path = parts
        if _like(key) in NAMED and not _present(path):
            continue
        absolutes[key] = before + ",".join(os.fspath(absolute(p)) for p in _paths(before, path))
    return changed(config, **absolutes)


def _present(path: str) -> bool:
    try:
        return inputs.present(inputs.path("", path))
    except BadInput:
        return False


def disagreeing(a: dict, b: dict) -> dict[str, tuple[str, str]]:
    """`common.config.differing` without paths that agree."""
    ours, theirs = flatten(a), flatten(b)
    return {
        key: values
        for key, values in differing(a, b).items()
        if not _agree(_split(key, ours.get(key)), _split(key, theirs.get(key)))
    }


def _agree(a: tuple[str, str] | None, b: tuple[str, str] | None) -> bool:
    if a is None or b is None or a[0] != b[0]:
        return False
    ours, theirs = _paths(*a), _paths(*b)
    return len(ours) == len(theirs) and all(map(_agree_on, ours, theirs))


def _agree_on(a: str, b: str) -> bool:
    short, long = sorted(map(os.path.normpath, (a, b)), key=os.path.isabs)
    if absolute(short) == absolute(long):
        return True
    end = re.sub(r"^(~/|(\.\./)+)", "", short)
    return os.path.isabs(long) and not os.path.isabs(short) and long.endswith(f"/{end}")


def unplaced(flat: dict) -> dict:
    """A flat config without the places of its data, of whose name the kind is left, and with the
    last part of the path of its weights. These have names of their own: older checkpoints keep the
    paths."""
    own = {}
    for key, value in flat.items():
        parts = _split(key, value)
        if key == "data.folder":
            continue
        if parts is None:
            own[key] = value
        elif _like(key) == "data.name":
            own[f"{key} (its kind)"] = parts[0]
        else:
            own[f"{key} (its end)"] = os.path.basename(absolute(parts[1]))
    return own
