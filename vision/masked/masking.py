"""Which patches of an image a masked autoencoder sees: as many of each, drawn from a row's own key,
so that they depend on nothing else of its batch.

Letters: B batch, N patches, of which V are visible.
"""

import jax
import jax.numpy as jnp

from common.errors import require


def ratio_section(*, ratio: float = 0.75) -> float:
    """The section `masking`: the ratio.

    Args:
      ratio: share of an image's patches that are hidden, and predicted (He et al. 2022).

    Raises:
      BadInput: if it is out of range.
    """
    return checked("config.masking.ratio", ratio)


def checked(where: str, ratio: float) -> float:
    """A ratio. Raises `BadInput` if it is out of range."""
    require(0 < ratio < 1, f"{where}: {ratio} is not between 0 and 1")
    return ratio


def count_visible(patches: int, ratio: float, where: str = "config.masking.ratio") -> int:
    """V, to the nearest whole patch. Raises `BadInput` if it is none, or all."""
    count = round(patches * (1 - ratio))
    require(
        0 < count < patches,
        f"{where}: of {patches} patches, a share of {ratio} hides "
        f"{'all' if count == 0 else 'none'}; images have (image_size / patch_size)^2 of them",
    )
    return count


def visible(keys, patches: int, count: int):
    """i32[B, V]: the visible patches, uniformly drawn without replacement.

    Args:
      keys: [B] jax keys.
      patches: N.
      count: V.
    """
    draw = lambda key: jnp.argsort(jax.random.uniform(key, (patches,)))[:count]
    return jax.vmap(draw)(keys).astype(jnp.int32)
