"""Folders as command lines give them, refused in one line where no run can be, and names made fit
for folders, tags and ids."""

import os
import re
import zlib

from etils import epath

from common import inputs
from common.errors import BadInput, require
from common.runs.files import absolute


def workdir(text: str) -> str:
    """`type=` of the argument --workdir: see `folder`."""
    return folder(text, "--workdir: ")


def folder(text: str, where: str = "") -> str:
    """`type=` of an argument that names a run, or a folder of runs: returns it unchanged.

    Args:
      text: the argument.
      where: begins the error message.

    Raises:
      BadInput: if it is empty, lies in a file, or on an object store whose package is missing.
    """
    require(bool(text.strip()), f"{where}the folder's name is empty; write runs/first, for example")
    require(text.isprintable(), f"{where}{text!r}: the folder's name holds unprintable characters")
    if "://" not in text:
        path = absolute(text)
        nearest = next(p for p in (path, *path.parents) if os.path.lexists(p))
        at = "it" if nearest == path else nearest
        require(os.path.isdir(nearest), f"{where}{path}: {at} is not a folder")
        return text
    scheme = text.partition("://")[0]
    try:
        epath.Path(text).exists()  # imports what it needs
    except KeyError as error:
        known = "use gs:// or s3://, or a folder of this machine"
        raise BadInput(f"{where}{text}: unknown file system {scheme}://; {known}") from error
    except ImportError as error:
        how = inputs.EXTRAS.get(scheme, " ".join(str(error).split()))
        raise BadInput(f"{where}{text}: a package for {scheme}:// is missing: {how}") from error
    return text


def fitting(name: str, unfit: str, longest: int) -> str:
    """`name` if it fits; else with its unfit parts as "_", cut, and with a checksum of the full
    name, so that different names stay different.

    Args:
      name: any text.
      unfit: regex of what may not be in it.
      longest: bytes, in UTF-8, before the checksum.
    """
    made = re.sub(unfit, "_", name).encode(errors="replace")[:longest].decode(errors="ignore")
    full = name.encode(errors="surrogatepass")
    return name if made == name else f"{made}-{zlib.crc32(full):08x}"
