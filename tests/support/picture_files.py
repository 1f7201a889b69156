"""Files of pictures in every mode and format that people have, and what their pixels are, written
without the program's own decoder."""

import io
import pathlib

import numpy as np
from PIL import Image, ImageOps

SIZE = 12
# Formats that are lossless for each kind, but for JPEG, whose pixels are what Pillow decodes.
SUFFIXES = {
    "RGB": ".png", "L": ".png", "1": ".png", "P": ".png", "P transparent": ".png", "RGBA": ".png",
    "LA": ".png", "I;16": ".png", "CMYK": ".jpg", "JPEG": ".jpg", "EXIF": ".jpg", "GIF": ".gif",
    "TIFF": ".tiff", "BMP": ".bmp", "WebP": ".webp",
}  # fmt: skip
KINDS = tuple(SUFFIXES)


def write(path: pathlib.Path, kind: str, rng: np.random.Generator, size: int = SIZE) -> None:
    """Writes a picture of random pixels, size x size."""
    noise = lambda *channels: rng.integers(0, 256, (size, size, *channels), np.uint8)
    colours = Image.fromarray(noise(3))
    more = {}
    match kind:
        case "L":
            image = Image.fromarray(noise())
        case "1":
            image = Image.fromarray(noise()).convert("1")
        case "P":
            image = colours.quantize(16)
        case "P transparent":
            image, more = colours.quantize(16), {"transparency": 3}
        case "RGBA":
            image = Image.fromarray(noise(4))
        case "LA":
            image = Image.fromarray(noise(2))
        case "I;16":
            image = Image.fromarray(rng.integers(0, 1 << 16, (size, size), np.uint16))
        case "CMYK":
            image = colours.convert("CMYK")
        case "EXIF":
            exif = Image.Exif()
            exif[0x0112] = int(rng.integers(2, 9))
            image, more = colours, {"exif": exif}
        case "GIF":
            frames = [Image.fromarray(noise(3)).quantize(16) for _ in range(2)]
            image, more = frames[0], {"save_all": True, "append_images": frames[1:]}
        case "WebP":
            image, more = colours, {"lossless": True}
        case _:
            image = colours
    data = io.BytesIO()
    format = Image.registered_extensions()[SUFFIXES.get(kind, path.suffix)]
    image.save(data, format, **more)
    path.write_bytes(data.getvalue())


def pixels(path: pathlib.Path) -> np.ndarray | None:
    """u8[H, W, 3] of a file by Pillow and numpy: over white, upright, 16 bits as 8; None if it is
    not a whole picture."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("I;16", "I;16B", "I"):
                grey = np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
                image = Image.fromarray(grey)
            image = ImageOps.exif_transpose(image)
            alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
            if not alpha:
                return np.asarray(image.convert("RGB"))
            rgba = np.asarray(image.convert("RGBA")).astype(np.int64)
    except Exception:
        return None
    colour, opacity = rgba[..., :3], rgba[..., 3:]
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
