"""Files of pictures as arrays: the pixels of every mode, and what cannot be read for certain."""

import pathlib
import struct
import zlib

import numpy as np
import pytest
from pets import load, noise, pets
from PIL import Image

from common.errors import BadInput
from vision.data import pictures

GREY, COLOUR, ALPHA = noise(4, 5), noise(4, 5, 3, seed=1), noise(4, 5, seed=2)
DEEP = noise(4, 5, seed=3, high=65536, dtype=np.uint16)
BITS = GREY > 127
PALETTE, INDICES = noise(8, 3, seed=4), noise(4, 5, seed=5, high=8)


def on_white(colour, alpha):
    """As a painter lays it on white, to the nearest."""
    alpha = alpha.reshape(4, 5, 1) / 255
    return np.rint(colour.reshape(4, 5, -1) * alpha + 255 * (1 - alpha)).astype(np.uint8)


def with_palette() -> Image.Image:
    image = Image.fromarray(INDICES, "P")
    image.putpalette(PALETTE.tobytes())
    return image


def turned(orientation: int) -> dict:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    return {"exif": exif}


PLAIN = Image.fromarray(COLOUR)
WITH_ALPHA = Image.fromarray(np.dstack([COLOUR, ALPHA]))
GREY_WITH_ALPHA = Image.fromarray(np.dstack([GREY, ALPHA]))
CMYK = Image.merge("CMYK", [Image.fromarray(noise(4, 5, seed=k)) for k in range(4)])
KEY = np.full((4, 5), 255)
KEY[np.all(COLOUR[1, 2] == COLOUR, axis=-1)] = 0
PIXELS = {
    "1.png": (Image.fromarray(BITS), {}, 255 * BITS[..., None]),
    "L.png": (Image.fromarray(GREY), {}, GREY[..., None]),
    "L.bmp": (Image.fromarray(GREY), {}, GREY[..., None]),
    "L.tif": (Image.fromarray(GREY), {}, GREY[..., None]),
    "LA.png": (GREY_WITH_ALPHA, {}, on_white(GREY, ALPHA)),
    "LA.tif": (GREY_WITH_ALPHA, {}, on_white(GREY, ALPHA)),
    "key.png": (
        Image.fromarray(GREY),
        {"transparency": int(GREY[2, 3])},
        np.where(GREY[2, 3] == GREY, 255, GREY)[..., None],
    ),
    "P.png": (with_palette(), {}, PALETTE[INDICES]),
    "P.gif": (with_palette(), {}, PALETTE[INDICES]),
    "P key.png": (
        with_palette(),
        {"transparency": 3},
        np.where(INDICES[..., None] == 3, 255, PALETTE[INDICES]),
    ),
    "P key.gif": (
        with_palette(),
        {"transparency": 3},
        np.where(INDICES[..., None] == 3, 255, PALETTE[INDICES]),
    ),
    "RGB.png": (PLAIN, {}, COLOUR),
    "RGB.ppm": (PLAIN, {}, COLOUR),
    "RGB.webp": (PLAIN, {"lossless": True}, COLOUR),
    "RGB key.png": (
        PLAIN,
        {"transparency": tuple(map(int, COLOUR[1, 2]))},
        on_white(COLOUR, KEY),
    ),
    "RGBA.png": (WITH_ALPHA, {}, on_white(COLOUR, ALPHA)),
    "RGBA.tiff": (WITH_ALPHA, {}, on_white(COLOUR, ALPHA)),
    "RGBA.TGA": (WITH_ALPHA, {}, on_white(COLOUR, ALPHA)),
    "I16.png": (Image.fromarray(DEEP), {}, np.rint(DEEP / 257)[..., None]),
    "I16.tif": (Image.fromarray(DEEP), {}, np.rint(DEEP / 257)[..., None]),
    "I.pgm": (Image.fromarray(DEEP), {}, np.rint(DEEP / 257)[..., None]),
    "animated.gif": (
        with_palette(),
        {"save_all": True, "append_images": [Image.new("P", (5, 4), 1)]},
        PALETTE[INDICES],
    ),
    "pages.tif": (
        PLAIN,
        {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
        COLOUR,
    ),
    "upside down.png": (PLAIN, turned(3), COLOUR[::-1, ::-1]),
    "turned.png": (PLAIN, turned(6), np.rot90(COLOUR, -1)),
    "turned.tif": (PLAIN, turned(8), np.rot90(COLOUR)),
    "turned deep.png": (
        Image.fromarray(DEEP),
        turned(6),
        np.rint(np.rot90(DEEP, -1) / 257)[..., None],
    ),
    "turned to nowhere.png": (PLAIN, turned(77), COLOUR),
}


@pytest.mark.parametrize("name", PIXELS)
def test_every_mode_gives_its_pixels(tmp_path, name):
    image, options, expected = PIXELS[name]
    image.save(tmp_path / name, **options)
    head = pictures.header(tmp_path / name)
    assert (head.grey, head[:2]) == (expected.shape[-1] == 1, expected.shape[:2])
    found, _ = pictures.pixels(tmp_path / name, expected.shape[-1])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    if head.grey:
        three, _ = pictures.pixels(tmp_path / name, 3)
        np.testing.assert_array_equal(three, np.repeat(expected, 3, axis=-1))


def test_lossy_and_cmyk_pictures_have_about_their_colours(tmp_path):
    """JPEG of one colour each; ink by the plain formula, also as Adobe stores it."""
    for name, image, options, expected in (
        ("a.jpg", Image.new("RGB", (32, 16), (200, 30, 90)), {}, (200, 30, 90)),
        ("b.jpg", Image.new("L", (32, 16), 77), {}, (77,)),
        ("c.jpg", Image.new("CMYK", (32, 16), (20, 200, 90, 40)), {}, (198, 46, 139)),
        ("d.tif", Image.new("CMYK", (32, 16), (20, 200, 90, 40)), {}, (198, 46, 139)),
        ("e.jpg", Image.new("RGB", (32, 16), (9, 9, 9)), turned(5), (9, 9, 9)),
    ):
        image.save(tmp_path / name, **options)
        found = pictures.pixels(tmp_path / name, len(expected))[0].astype(int)
        shape = (32, 16) if options else (16, 32)
        assert found.shape[:2] == pictures.header(tmp_path / name)[:2] == shape
        assert np.abs(found - expected).max() <= 3, name


# ----------------------------------------------------------------------- what Pillow does not write


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, kind: int, rows: np.ndarray, before=b"", behind=b"") -> bytes:
    """A PNG of rows [H, bytes] with chunks before and behind its pixels."""
    width = rows.shape[1] * 8 // (bits * {0: 1, 2: 3, 4: 2}[kind])
    head = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = _chunk(b"IHDR", head), before, _chunk(b"IDAT", data), behind, _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(shape, bits, photometric, data: bytes, sample=1, planar=1) -> bytes:
    """A TIFF of one strip, [H, W, C]."""
    height, width, channels = shape
    start = 8 + 2 + 12 * 11 + 4
    many = lambda value, at: value if channels == 1 else at  # of which shorts do not fit
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, many(bits, start))),
        *((259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, start + 4 * channels)),
        *((277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, planar)),
        (339, 3, channels, many(sample, start + 2 * channels)),
    ]
    shorts = struct.pack(f"<{2 * channels}H", *[bits] * channels, *[sample] * channels)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + shorts + data


def key(*values: int) -> bytes:
    return _chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


DEEP_ROWS = np.frombuffer(DEEP.astype(">u2").tobytes(), np.uint8).reshape(4, 10)
DEEP_COLOUR = noise(4, 5, 3, seed=6, high=65536, dtype=np.uint16)
WITH_DEEP_ALPHA = np.dstack([DEEP, np.full((4, 5), 65535)]).astype(">u2").view(np.uint8)
TURN = _chunk(b"eXIf", turned(6)["exif"].tobytes().removeprefix(b"Exif\0\0"))
WRITTEN = {
    "16 bits with a key.png": (
        png(16, 0, DEEP_ROWS, key(int(DEEP[1, 2]))),
        np.where(DEEP[1, 2] == DEEP, 255, np.rint(DEEP / 257)),
    ),
    "2 bits with a key.png": (
        png(2, 0, np.uint8([[0b00011011]] * 3), key(1)),
        [[0, 255, 170, 255]] * 3,
    ),
    "4 bits with a key.png": (png(4, 0, np.uint8([[0x0F, 0x5A]]), key(5)), [[0, 255, 255, 170]]),
    "1 bit with a key.png": (png(1, 0, np.uint8([[0b01100000]]), key(0)), [[255] * 8]),
    "16 bits with alpha.png": (
        png(16, 4, WITH_DEEP_ALPHA.reshape(4, -1)),
        DEEP >> 8,
    ),
    "turned behind.png": (png(8, 0, GREY, behind=TURN), np.rot90(GREY, -1)),
    "12 bits.tif": (
        tiff((1, 4, 1), 12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF])),
        [[0, 128, 255, 255]],
    ),
    "16 bits of colour.tif": (tiff((4, 5, 3), 16, 2, DEEP_COLOUR.tobytes()), DEEP_COLOUR >> 8),
    "white is 0.tif": (tiff((4, 5, 1), 8, 0, GREY.tobytes()), 255 - GREY),
    "16 bits.tif": (tiff((4, 5, 1), 16, 1, DEEP.tobytes()), np.rint(DEEP / 257)),
    "16 bits of which white is 0.tif": (tiff((4, 5, 1), 16, 0, DEEP.tobytes()), "0 is white"),
    "16 bits in planes.tif": (
        tiff((4, 5, 3), 16, 2, DEEP_COLOUR.transpose(2, 0, 1).tobytes(), planar=2),
        "one after the other",
    ),
    "8 bits with signs.tif": (tiff((4, 5, 1), 8, 1, GREY.tobytes(), sample=2), "signs"),
    "16 bits with signs.tif": (tiff((4, 5, 1), 16, 1, DEEP.tobytes(), sample=2), "signs"),
    "32 bits.tif": (tiff((4, 5, 1), 32, 1, DEEP.astype(np.uint32).tobytes()), "32 bits"),
    "a colour of 16 bits is the key.png": (
        png(16, 2, DEEP_COLOUR.astype(">u2").reshape(4, -1).view(np.uint8), key(5, 5, 5)),
        "a colour of 16 bits is transparent",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_pillow_would_read_as_something_else_is_read_right_or_refused(tmp_path, name):
    data, expected = WRITTEN[name]
    path: pathlib.Path = tmp_path / name
    path.write_bytes(data)
    if isinstance(expected, str):
        for read in (pictures.header, lambda path: pictures.pixels(path, 3)):
            with pytest.raises(pictures.Broken, match=expected):
                read(path)
        return
    expected = np.asarray(expected)
    expected = expected[..., None] if expected.ndim == 2 else expected
    head = pictures.header(path)
    assert (head[:2], head.grey) == (expected.shape[:2], expected.shape[-1] == 1)
    np.testing.assert_array_equal(pictures.pixels(path, expected.shape[-1])[0], expected)


@pytest.mark.parametrize(("highest", "refused"), [(4095, True), (255, True), (65535, False)])
def test_12_bits_in_files_of_16_are_refused(tmp_path, highest, refused):
    root = pets(tmp_path / "pets", 6)
    for i, path in enumerate(root.rglob("*.png")):
        deep = noise(4, 5, seed=i, high=min(highest, 4096), dtype=np.uint16)
        deep[0, 0] = highest if i == 3 else 0  # one of them tells
        Image.fromarray(deep).save(path)
    if refused:
        with pytest.raises(BadInput, match=rf"png: its 16 bits never exceed {highest:,} "):
            load(root, resident=False)
    else:
        assert load(root)["train"].size > 0
