"""Reads and writes models in the layouts of other libraries, by the tables of a domain.

`lm.weights` and `vision.weights` bind it to their families. A folder holds config.json and
model.safetensors or pytorch_model.bin, in one file or in numbered parts with an index. Torch is not
needed, and nothing in a file is executed.
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from etils import epath

from common import inputs, tree
from common.errors import BadInput, require
from common.weights import family as families_of
from common.weights import names as naming
from common.weights import tensors
from common.weights.family import Described, Family

HEADS = "classifier/kernel", "token_classifier/kernel", "head/kernel"  # of classes
STATISTICS = {"mean", "var"}  # leaves in the collection batch_stats; all others are parameters


class Read(NamedTuple):
    """The contents of a file or folder of weights.

    Attributes:
      values: {path here: f32}: every tensor that has a name here, in all collections.
      unmatched: tensors of the file that have no name here.
      described: what its config.json says; None if there is none.
      family: the kind of model.
      names: the layout that it is in.
      own: fields of the head that stand in other files.
    """

    values: dict[str, np.ndarray]
    unmatched: tuple[str, ...]
    described: Described | None
    family: Family
    names: naming.Names
    own: Mapping[str, Any] = families_of.NOTHING

    def fields(self, skip: Iterable[str] = ()) -> dict[str, Any]:
        """The fields of our class that the folder determines; {} without a config.json.

        Args:
          skip: regexes of parameters that are not taken: those of a head, whose fields are then of
            no interest. A head that the file lacks has none either.
        """
        if self.described is None:
            return {}
        taken = {p for p in self.values if not any(re.fullmatch(regex, p) for regex in skip)}
        head = {k: (v, path) for k, (v, path) in self.family.head.items() if path in taken}
        head = {k: self.own.get(k, v) for k, (v, _) in head.items()}
        return self.described.fields | head


def describe(folder: epath.PathLike, families: Iterable[Family]) -> Described:
    """What a folder's config.json says.

    Raises:
      BadInput: if there is none, or it has a setting that the models here lack.
    """
    config, where = tensors.settings(folder)
    return families_of.describe(config, families, where)


def read(
    path: epath.PathLike,
    families: Iterable[Family],
    model: nn.Module | None = None,
    contents: tuple[dict, dict] | None = None,
) -> Read:
    """Reads every tensor of a checkpoint that has a name here.

    Args:
      path: a folder, whose config.json identifies the family; its file of tensors; or another
        file, whose names identify it.
      families: those to consider.
      model: the model that they must be of, if it is known; a config.json of a library that
        writes other keys then does no harm.
      contents: (config.json, tensors) of a file that has both; None reads them.

    Raises:
      BadInput: if the folder's config.json describes no model of ours; if no tensor has a name
        here, two tensors that are one parameter here differ, or a tensor is not of its kind.
    """
    path, described, candidates = epath.Path(path), None, tuple(families)
    fitting = [each for each in candidates if model is None or isinstance(model, each.model)]
    require(bool(fitting), f"{type(model).__name__}: no weights of such a model can be read")
    config, loaded = contents or (None, None)
    file = (path.parent if path.name in tensors.FILES else path) / "config.json"
    if config is None and inputs.present(file):
        config = tensors.json_object(file)
    if config is not None and (model is None or families_of.recognisable(config, candidates)):
        where = str(path if contents else file)
        # One kind there may be several models here, such as one without its decoder.
        others = [each for each in candidates if each not in fitting]
        described = families_of.describe(config, (*fitting, *others), where)
        require(
            described.family in fitting,
            f"{path} is a {described.family.name}, and the model is a {type(model).__name__}",
        )
        fitting = [described.family]
    loaded = tensors.read(path) if loaded is None else loaded
    with within(path):
        readings = [
            (family, names, *naming.recognised(names, loaded))
            for family in fitting
            for names in _layouts(family, config or {})
        ]
        family, names, known, unmatched = max(readings, key=lambda reading: len(reading[2]))
        kinds = " or ".join(dict.fromkeys(each.name for each in fitting))
        said = "" if described is None else ", which it is by its config.json"
        require(bool(known), f"of its {len(loaded)} tensors none is one of {kinds}{said}")
        tied = described.fields.get("tied") if described is not None else None
        naming.require_ours(names, unmatched)
        in_layers = [name for name in unmatched if re.search(r"\.\d+\.", name)]
        _refuse(f"holds tensors that no {kinds} has", in_layers)
        known = naming.without_copies(names, known, tied)
        read = Read(naming.parameters(names, known), unmatched, described, family, names)
        _check_layers(read)
        return read


def _check_layers(read: Read) -> None:
    """Raises `BadInput` unless there are as many blocks, of each side, as config.json says."""
    matches = [re.match(r"(\w+/)?block_\d+", path) for path in read.values]
    blocks = {match[0] for match in matches if match}
    side_of = lambda block: block.rpartition("block_")[0]
    fields = read.fields()
    for side in {side_of(block) for block in blocks} or {""}:
        layers = sum(side_of(block) == side for block in blocks)
        own = fields.get("decoder_layers") if side == "decoder/" else None
        says = fields.get("layers", layers) if own is None else own
        require(
            layers == says,
            f"its config.json says {says} layers{side and f' of the {side[:-1]}'}, and its tensors "
            f"are of {layers}",
        )


def _layouts(family: Family, config: dict) -> tuple[naming.Names, ...]:
    """The layouts of a family that a file may be in, by the class that its config.json names."""
    classes = config.get("architectures")
    listed = classes if isinstance(classes, list) else ()
    classes = [name for name in listed if isinstance(name, str)]
    alone = [
        names
        for names in family.names
        if names.architecture and any(name.endswith(names.architecture) for name in classes)
    ]
    others = [names for names in family.names if not names.architecture]
    return tuple(alone or (others if classes else family.names))


@contextlib.contextmanager
def within(place: epath.PathLike) -> Iterator[None]:
    """Begins the message of a `BadInput` with the file or folder that it is about."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None


def check(
    what: str,
    read: Read,
    model: nn.Module,
    paths: Container[str],
    init: dict,
    classes: tuple[str, ...],
) -> None:
    """Raises `BadInput` if weights are of a model that computes something else, or predict other
    classes.

    Args:
      what: the weights, for messages.
      read: their contents.
      model: the model that is to be initialised.
      paths: of its parameters and statistics.
      init: the section `init`: `allow`, `skip` and `rename` count.
      classes: the names of the model's classes; () if it has none.
    """
    skip = init.get("skip", ())
    skipped = lambda path: any(re.fullmatch(regex, path) for regex in skip)
    fields = families_of.fields_of(model)
    families_of.require_same(what, read.fields(skip), fields, init.get("allow", ()))
    unused = [p for p in read.values if p not in paths and not skipped(p) and not of_head(read, p)]
    if not init.get("rename"):
        _refuse(f"{what} has parameters that this model lacks", unused)
    if read.described is None and "heads" in read.family.fields:
        logging.warning(
            "%s: no config.json: its heads, epsilon and activation are taken to be the model's",
            what,
        )
    theirs = read.described.classes if read.described is not None else ()
    heads = [path for path in HEADS if path in read.values and not skipped(path)]
    if not heads or not theirs or theirs == classes:
        return
    pairs = enumerate(itertools.zip_longest(theirs, classes))
    number, names = next((i, (a, b)) for i, (a, b) in pairs if a != b)
    there, here = ("absent" if name is None else repr(name) for name in names)
    pair = f"class {number} is {there} there and {here} here"
    known = {name.casefold() for name in theirs} & {name.casefold() for name in classes}
    fresh = f"--config.init.skip=\"('{heads[0].partition('/')[0]}/.*',)\" begins with a fresh head"
    require(not known, f"{what} has other classes, or in another order: {pair}; {fresh}")
    logging.warning("%s: the classes have other names: %s", what, pair)


def of_head(read: Read, path: str) -> bool:
    """Whether a parameter is of a head, which another model need not have."""
    name = naming.name_of(read.names, path)
    return name.startswith(read.names.heads) or path.startswith("pooler/")


def variables(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """{"params": …} and, if there are running statistics, {"batch_stats": …}, of {path: array}."""
    collection = lambda path: "batch_stats" if path.rpartition("/")[2] in STATISTICS else "params"
    return tree.unflatten({f"{collection(path)}/{path}": x for path, x in values.items()})


def fitted(
    read: Read, shapes: dict[str, tuple], where: str, optional: str | tuple[str, ...] = ""
) -> dict[str, np.ndarray]:
    """The contents of a file for a model: exactly its parameters, in its shapes.

    Args:
      read: from `read`.
      shapes: {path: shape} of the model's parameters and statistics.
      where: the file, for messages.
      optional: beginning of the paths of a head that the file may lack; several, of heads that it
        has all or none of.

    Returns:
      {path: f32} of those that the file has.

    Raises:
      BadInput: if a parameter is missing or has another shape, or the model lacks one of the
        file's.
    """
    values, kind = read.values, read.family.model.__name__
    name = lambda path: naming.name_of(read.names, path)
    headless = optional and not any(path.startswith(optional) for path in values)
    missing = [
        p for p in shapes.keys() - values.keys() if not (headless and p.startswith(optional))
    ]
    _refuse(f"{where}: tensors of {kind} are missing", map(name, missing))
    _refuse(f"{where}: tensors that this {kind} lacks", map(name, values.keys() - shapes.keys()))
    wrong = [
        f"{name(path)}, here {path}, is {list(values[path].shape)} there and {list(shape)} here"
        for path, shape in shapes.items()
        if path in values and values[path].shape != tuple(shape)
    ]
    _refuse(f"{where}: tensors do not fit {kind}", wrong)
    return {path: values[path] for path in shapes if path in values}


def _refuse(message: str, listed: Iterable[str]) -> None:
    """Raises `BadInput` if anything is listed, naming the first few."""
    listed = sorted(listed)
    more = f", and {len(listed) - 4} more" if len(listed) > 4 else ""
    require(not listed, f"{message}: {', '.join(listed[:4])}{more}")


def warn_unmatched(where, unmatched: tuple[str, ...]) -> None:
    """One warning that lists tensors without a parameter here."""
    if unmatched:
        logging.warning("%s: left out, no parameter here: %s", where, ", ".join(unmatched))


# ----------------------------------------------------------------------------------------- writing


def family_for(model: nn.Module, families: Iterable[Family], name: str | None = None) -> Family:
    """The family in whose layout a model is written.

    Args:
      model: the model.
      families: those to consider, in order of preference.
      name: of the family; None is the first that has such a model.

    Raises:
      BadInput: if none has such a model.
    """
    candidates = [
        family
        for family in families
        if isinstance(model, family.model) and name in (None, family.name)
    ]
    kind = type(model).__name__
    require(bool(candidates), f"{kind}: no such model{'' if name is None else f' in {name}'} there")
    return min(candidates, key=lambda family: len(families_of.unlike(family, model)))


def save(
    folder: epath.PathLike,
    model: nn.Module,
    values: dict[str, Any],
    family: Family,
    classes: tuple[str, ...] = (),
    channels: int | None = None,
) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: the model.
      values: {path here: array} of its parameters and statistics, in the dtypes to write.
      family: from `family_for`.
      classes: the names of the classes; () numbers them.
      channels: C of the images, of an image model.

    Raises:
      BadInput: if the family has no such model or parameter.
    """
    described = families_of.config_of(family, model)
    architecture = next(a for path, a in family.architectures if not path or path in values)
    described["architectures"] = [architecture]
    count = getattr(model, "num_classes", None) or len(classes)
    if count:
        labels = classes or tuple(f"LABEL_{i}" for i in range(count))
        described["id2label"] = {str(i): label for i, label in enumerate(labels)}
        described["label2id"] = {label: i for i, label in enumerate(labels)}
    if channels is not None:
        described["num_channels"] = channels
    names = layout(family, values)
    tensors.write(folder, exported(names, model, values, architecture), described)


def layout(family: Family, paths: Iterable[str]) -> naming.Names:
    """The layout of a family in which parameters are written: the first that names all of them (an
    MLP that is gated may have other names); the first of all if none does."""
    fits = lambda names: all(naming.has(names, path) for path in paths)
    return next(filter(fits, family.names), family.names[0])


def exported(
    names: naming.Names, model: nn.Module, values: dict[str, Any], architecture: str = ""
) -> dict[str, np.ndarray]:
    """{name there: tensor}, contiguous, of {path here: array}; see `save`. A class there without
    heads, `…Model`, has names without prefix."""
    bare = architecture.endswith("Model") and not architecture.endswith(("LMHeadModel", "MTModel"))
    if bare:
        names = names._replace(prefix="")
    written = naming.tensors(names, model, {path: np.asarray(x) for path, x in values.items()})
    if names.unused is not None:
        written |= {names.prefix + name: x for name, x in names.unused(model).items()}
    for name in [name for name in written if name.endswith(".running_var")]:
        written[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return written
