"""Text files of one's own: compressed or not, in UTF-8, or in UTF-16 with a byte order mark.

What has one certain meaning is mended and counted (see `common.inputs`); what has none is refused,
with its file and line.
"""

import codecs
import collections
import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import IO

from etils import epath

from common import inputs
from common.errors import BadInput, require

PACKED = (".gz", ".bz2", ".xz", ".zst")  # suffixes of compressed files
CHUNK = 1 << 16  # bytes that are decompressed at once
BOM = "byte order mark removed"
NUL = "has a NUL character, as no text has: remove it, or convert the file to UTF-8"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),  # before UTF-16's, its start
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class Empty(BadInput):
    """A file without a line, or a table without a record."""


def kind_of(path) -> tuple[str, str]:
    """The suffixes of a file, in lower case: (".csv", ".gz") of "a.CSV.gz", (".txt", "") of
    "a.txt"."""
    stem, suffix = os.path.splitext(os.path.basename(os.fspath(path)).lower())
    return (os.path.splitext(stem)[1], suffix) if suffix in PACKED else (suffix, "")


@contextlib.contextmanager
def unpacked(where: str, path) -> Iterator[IO[bytes]]:
    """Opens a file to read its bytes, decompressed if its suffix is one of `PACKED`. Raises
    `BadInput` if it cannot be read, now or in the block: it is damaged, or cut off."""
    inputs.file(where, path)
    packing = kind_of(path)[1]
    try:
        with epath.Path(path).open("rb") as plain, _decompressed(plain, packing) as stream:
            yield stream
    except BadInput:
        raise
    except Exception as error:  # each library has errors of its own
        damaged = f"damaged or cut off, as a {packing} file: " if packing else ""
        why = inputs.reason(error)
        raise BadInput(f"{where}: {inputs.shown(path)} cannot be read: {damaged}{why}") from error


def _decompressed(file: IO[bytes], packing: str):
    import bz2
    import gzip
    import lzma

    if packing == ".zst":
        try:
            from compression import zstd  # Python 3.14
        except ImportError:
            import pyarrow as pa  # comes with tensorflow-datasets

            return io.BufferedReader(pa.input_stream(file, compression="zstd"), 1 << 16)
        return zstd.open(file)
    if packing == ".gz":
        return gzip.open(file)
    begin = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}.get(packing)
    if begin is None:
        return contextlib.nullcontext(file)
    return io.BufferedReader(_Members(file, begin), CHUNK)


class _Members(io.RawIOBase):
    """What all members of a file hold, one after the other. The library's own reader takes what
    follows the first, and is no member or a damaged one, for the end."""

    def __init__(self, file: IO[bytes], begin):
        super().__init__()
        self.file, self.begin, self.member = file, begin, None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            if self.member is None or self.member.eof:
                data = self.member.unused_data if self.member else self.file.read(CHUNK)
                while self.member and not (data := data.lstrip(b"\0")):  # padding
                    if not (data := self.file.read(CHUNK)):
                        return 0
                self.member = self.begin()
            else:
                data = self.file.read(CHUNK) if self.member.needs_input else b""
            if not data and self.member.needs_input:
                raise EOFError("it ends before its last member does")
            found = self.member.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)


def read(where: str, path, mended: collections.Counter) -> str:
    """The whole text of a file, with its line ends as they are. Raises `BadInput` as `lines` does,
    but an empty file, or one of HTML, is a text."""
    with unpacked(where, path) as file:
        raw = file.read()
    known = inputs.impostor(raw[:64]) if raw.startswith(b"version") else None
    require(known is None, f"{where}: {inputs.shown(path)} is {known}")
    encoding = _encoding(where, path, raw[:64])
    mended.update(_mark(encoding))
    words = inputs.decoded(where, path, raw, encoding)
    if (at := words.find("\0")) >= 0:
        number = len(inputs.LINE_END.findall(words[:at])) + 1
        require(False, f"{where}: {inputs.shown(path)}, line {number}, {NUL}")
    return words if encoding.startswith("utf-8") else inputs.whole(words, mended)


def lines(
    where: str, path, mended: collections.Counter, newline: str | None = None
) -> Iterator[str]:
    """The lines of a text file, which may be compressed, in UTF-8, or in UTF-16 with a byte order
    mark. They keep their ends, as "\\n", or as they are if `newline` is "".

    Raises:
      BadInput: if the file cannot be read, with the line that is not text; or if it holds
        something else than its contents, such as a git-lfs pointer.
      Empty: if it holds nothing.
    """
    with unpacked(where, path) as file:
        buffered = file if hasattr(file, "peek") else io.BufferedReader(file)
        head = buffered.peek(64)[:64]
        known = inputs.impostor(head)
        if not head:
            raise Empty(f"{where}: {inputs.shown(path)} is {known}")
        require(known is None, f"{where}: {inputs.shown(path)} is {known}")
        encoding = _encoding(where, path, head)
        narrow = encoding.startswith("utf-8")
        mended.update(_mark(encoding))
        passing = "surrogateescape" if narrow else "surrogatepass"
        number = 0
        try:
            with io.TextIOWrapper(buffered, encoding, passing, newline) as texts:
                for number, line in enumerate(texts, 1):
                    if "\0" in line:
                        require(False, f"{where}: {inputs.shown(path)}, line {number}, {NUL}")
                    if not line.isascii() and (half := re.search("[\ud800-\udfff]", line)):
                        byte = ord(half[0]) - 0xDC00
                        require(
                            not narrow,
                            f"{where}: {inputs.shown(path)}, line {number}, is not UTF-8 (byte "
                            f"0x{byte:02x}); convert the file to UTF-8",
                        )
                        line = inputs.whole(line, mended)
                    yield line
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{where}: {inputs.shown(path)}: what follows line {number} is not "
                f"{encoding.upper()} ({error.reason}); convert the file to UTF-8"
            ) from error


def _mark(encoding: str) -> tuple[str, ...]:
    """What was mended in a text of this encoding."""
    return {"utf-8": (), "utf-8-sig": (BOM,)}.get(encoding, (f"{encoding.upper()} decoded",))


def _encoding(where: str, path, head: bytes) -> str:
    """The encoding that a file's first bytes tell: that of its byte order mark, else "utf-8"."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    bare = len(head) > 3 and b"\0\0" in (head[0:4:2], head[1:4:2])
    wide = "UTF-32" if head[:3] == b"\0\0\0" or head[1:4] == b"\0\0\0" else "UTF-16"
    require(
        not bare,
        f"{where}: {inputs.shown(path)} cannot be read: it looks like {wide} without a byte order "
        "mark; convert the file to UTF-8",
    )
    return "utf-8"
