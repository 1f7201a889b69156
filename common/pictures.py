"""Pictures for trackers, as arrays, drawn with Pillow: tiles with captions, and confusion matrices.
Not for reports, whose figures have axes (`common.reports.plots`).
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE, MOST_TILE = 96, 384  # pixels of the longer side of an image, about at least, and at most
CELL, MOST_CELLS = 36, 1200  # pixels of a class; and of a whole matrix, about


def tiles(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Images in rows, each over its caption: u8[H', W', 3].

    Args:
      images: u8[n, H, W, C] of 1, 3 or 4 channels (of others, the first).
      captions: n texts; what is wider than an image is cut.
    """
    font = ImageFont.load_default(11)
    height, width = images.shape[1:3]
    longer = max(height, width)
    scale = max(1, round(TILE / longer)) if longer <= MOST_TILE else MOST_TILE / longer
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * (wide + 6) + 6, rows * (high + 22) + 6), "white")
    draw = ImageDraw.Draw(page)
    for i, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = 6 + i % columns * (wide + 6), 6 + i // columns * (high + 22)
        pixels = pixels if pixels.shape[-1] in (3, 4) else pixels[..., 0]
        image = Image.fromarray(np.ascontiguousarray(pixels))
        page.paste(image.resize((wide, high), how), (x, y))
        caption = caption[:wide]
        while draw.textlength(caption, font) > wide:
            caption = caption[:-2].rstrip("…") + "…" if len(caption) > 2 else ""
        draw.text((x, y + high + 2), caption, "black", font)
    return np.asarray(page)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """A confusion matrix, the true class of a row in each row: u8[H', W', 3].

    The shade of a cell is its share of its row. Counts and names are written where they fit; of
    more than `MOST_CELLS` classes, a cell stands for several that follow one another.

    Args:
      matrix: [K, K] counts, true by predicted.
      classes: K names.
    """
    count, font = len(matrix), ImageFont.load_default(11)
    title = "rows: true, columns: predicted"
    if count > MOST_CELLS:
        together = math.ceil(count / MOST_CELLS)
        starts = np.arange(0, count, together)
        matrix = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
        count, title = len(matrix), f"{title}; {together} classes together"
    cell = min(CELL, MOST_CELLS // count)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    shade = np.rint(255 - share[..., None] * (255 - np.array([8.0, 48.0, 107.0]))).astype(np.uint8)
    body = Image.fromarray(shade).resize((count * cell,) * 2, Image.Resampling.NEAREST)
    named = cell >= 12
    names = [name if len(name) < 20 else name[:19] + "…" for name in classes]
    left = 24 + (math.ceil(max(map(font.getlength, names))) if named else 0)
    width = max(left + body.width, math.ceil(font.getlength(title))) + 8
    page = Image.new("RGB", (width, left + body.height + 8), "white")
    page.paste(body, (left, left))
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(names if named else ()):
        at = left + i * cell + cell // 2
        draw.text((left - 4, at), name, "black", font, anchor="rm")
        label = Image.new("RGB", (left - 20, 14), "white")  # turned: columns are narrow
        ImageDraw.Draw(label).text((0, 7), name, "black", font, anchor="lm")
        page.paste(label.rotate(90, expand=True), (at - 7, 16))
    for i, j in np.argwhere(matrix > 0) if cell == CELL else ():
        at = left + j * cell + cell // 2, left + i * cell + cell // 2
        ink = "white" if share[i, j] > 0.5 else "black"
        draw.text(at, _short(matrix[i, j]), ink, font, anchor="mm")
    draw.text((4, 2), title, "black", font)
    return np.asarray(page)


def _short(count: float) -> str:
    """A count in five characters: '137', '12k', '3M'."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 10 * unit:
            return f"{count / unit:.0f}{name}"
    return f"{count:.0f}"
