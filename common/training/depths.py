"""How deep each parameter of a model is, by its path, for layer-wise decay of the learning rate
(Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).

A model names its blocks `block_0`, `block_1`, … or, in stages, `stage_0_block_0`, …; a layer that
begins a stage, `downsample_1`, counts with the first block of it. Of the others, those that `FIRST`
matches come before the blocks; the rest is the head.
"""

import re
from collections.abc import Iterable

from common.errors import require

BLOCK = re.compile(r"(?:.*/)?(?:stage_(\d+)_)?block_(\d+)(?:[_/].*)?")
BETWEEN = re.compile(r"(?:.*/)?downsample_(?:norm_)?(\d+)/.*")
FIRST = re.compile(
    r"(.*/)?(token|position|position_scale|type|patch|whitening|stem|stem_norm|embedding_\w+|"
    r"(class|distillation|register)_tokens?)(/.*)?"
)


def heights(paths: Iterable[str]) -> dict[str, int]:
    """{path: layers from the head down}: 0 for the head, n - i for block i of n, n + 1 for what
    comes before the blocks. Raises `BadInput` if no parameter is of a block."""
    blocks = {path: _block(path) for path in paths}
    order = sorted({block for block in blocks.values() if block is not None})
    require(
        bool(order),
        "config.optim.layer_decay: no parameter of this model is of a block, block_0, block_1, …; "
        "set config.optim.multipliers instead",
    )
    index = {block: i for i, block in enumerate(order)}

    def height(path, block):
        if block is not None:
            return len(order) - index[block]
        return len(order) + 1 if FIRST.fullmatch(path) else 0

    return {path: height(path, block) for path, block in blocks.items()}


def _block(path: str) -> tuple[int, int] | None:
    """(stage, block) of a parameter, or None."""
    matched = BLOCK.fullmatch(path)
    if matched:
        return int(matched[1] or 0), int(matched[2])
    matched = BETWEEN.fullmatch(path)
    return (int(matched[1]), 0) if matched else None
