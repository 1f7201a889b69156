"""Explains an image classifier: saliency maps, its worst mistakes, and figures of both.

    logits_of = jax.tree_util.Partial(model.apply, variables)
    attributions = explain.integrated_gradients(logits_of, images, labels)
    cam = explain.grad_cam(model.apply, variables, images, labels)
    explain.draw_maps(images, {"Grad-CAM": cam}, titles).savefig("saliency.png")

The maps are pure functions of any model; each drawing is a Matplotlib figure that belongs to the
caller. scripts/explain.py does all of this for a run.

Letters: B batch, H height, W width and C channels of an image; h height and w width of a layer or
of a grid of patches; K classes; L positions and A heads of attention.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from common.errors import choice, require
from common.reports.plots import figure

LEAST_CELLS = 16  # of a map that tells where

# -------------------------------------------------------------------------------------------- maps


def _label_logits(logits, labels):
    """The sum over rows of the label's logit, to be differentiated: rows do not interact."""
    return jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1))


@jax.jit
def _gradients(logits_of, images, labels):
    return jax.grad(lambda x: _label_logits(logits_of(x), labels))(images)


def integrated_gradients(logits_of: Callable, images, labels, baseline=0.0, steps: int = 32):
    """Integrated gradients (Sundararajan et al. 2017): f32[B, H, W, C], the contribution of
    each input value to the logit of its image's label.

    A row sums to logit(image) - logit(baseline), up to the error of the midpoint rule.

    Args:
      logits_of: f32[B, H, W, C] -> f32[B, K], rows independent. Compiled once; a
        `jax.tree_util.Partial(model.apply, variables)` avoids recompilation for other variables.
      images: f32[B, H, W, C], as the model takes them.
      labels: i32[B].
      baseline: an image without content, e.g. black; broadcastable to `images`. 0 is the mean of
        normalised images.
      steps: number of points at which the integral is evaluated.
    """
    if not isinstance(logits_of, jax.tree_util.Partial):
        logits_of = jax.tree_util.Partial(logits_of)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    difference = images - baseline
    # A Python loop: convolutions inside a compiled one are ten times slower on CPU.
    total = jnp.zeros_like(difference)
    for i in range(steps):
        total += _gradients(logits_of, baseline + (i + 0.5) / steps * difference, labels)
    return difference * total / steps


def _sown(collection: dict, path: str = "") -> Iterator[tuple[str, jax.Array]]:
    """Yields (path, last sown value) in the order of sowing, which jax.tree does not keep."""
    for key, value in collection.items():
        if isinstance(value, tuple):
            yield f"{path}{key}", value[-1]
        elif isinstance(value, dict):
            yield from _sown(value, f"{path}{key}/")


def _is_map(path: str) -> bool:
    return path.rpartition("/")[2] == "attention"


def spatial(apply: Callable, variables: dict, images) -> dict[str, jax.ShapeDtypeStruct]:
    """The intermediates [B, h, w, C] of a model by name, in the order of their computation.

    Args: as in `grad_cam`.
    """
    shapes = {}

    def trace(variables, images):
        sown = apply(variables, images, mutable=["intermediates"])[1].get("intermediates", {})
        for path, value in _sown(sown):
            if value.ndim == 4 and not _is_map(path):
                shapes[path] = jax.ShapeDtypeStruct(value.shape, value.dtype)

    jax.eval_shape(trace, variables, images)
    return shapes


def layer_of(layers: dict[str, jax.ShapeDtypeStruct], name: str | None = None) -> str:
    """The layer that Grad-CAM shows: `name`, or the last one whose map has at least `LEAST_CELLS`
    cells.

    Args:
      layers: from `spatial`.
      name: one of them.

    Raises:
      BadInput: if there is no such layer, or its map, or every map, is too coarse to tell where.
    """
    require(bool(layers), "grad_cam: no layer [B, h, w, C] of this model has a name")
    cells = {key: (layer.shape[1], layer.shape[2]) for key, layer in layers.items()}
    fine = [key for key, (height, width) in cells.items() if height * width >= LEAST_CELLS]
    if name is not None and choice("grad_cam: name", name, layers) in fine:
        return name
    largest = max(cells, key=lambda key: math.prod(cells[key]))
    where = name or largest
    instead = f"; use {fine[-1]}" if fine else ""
    require(
        name is None and bool(fine),
        f"grad_cam: the map of {where} is {cells[where][0]} x {cells[where][1]}, too coarse to "
        f"tell where{instead}",
    )
    return fine[-1]


def grad_cam(apply: Callable, variables: dict, images, labels, name: str | None = None):
    """Grad-CAM (Selvaraju et al. 2017): f32[B, h, w] >= 0, where a layer supports the label.

    Args:
      apply: of a linen module whose layers have names (`common.nn.layers.named`).
      variables: of the module.
      images: f32[B, H, W, C], as the model takes them.
      labels: i32[B].
      name: name of an intermediate [B, h, w, C]; None is the last one that is not too coarse.

    Raises:
      BadInput: as `layer_of` does.
    """
    layers = spatial(apply, variables, images)
    name = layer_of(layers, name)

    def score(added):
        perturbed = {**variables, "perturbations": tree.unflatten({name: added})}
        logits, sown = apply(perturbed, images, mutable=["intermediates"])
        return _label_logits(logits, labels), dict(_sown(sown["intermediates"]))[name]

    zeros = jnp.zeros(layers[name].shape, layers[name].dtype)
    gradient, layer = jax.grad(score, has_aux=True)(zeros)
    weights = gradient.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32)
    return jax.nn.relu(jnp.sum(weights * layer, axis=-1))


def attention_maps(apply: Callable, variables: dict, images) -> list:
    """The attention maps f32[B, A, L, L] of a transformer, first block first; [] if there are none.
    Arguments as in `grad_cam`."""
    sown = apply(variables, images, mutable=["intermediates"])[1].get("intermediates", {})
    return [value for path, value in _sown(sown) if value.ndim == 4 and _is_map(path)]


def rollout(maps: Sequence):
    """How much each position draws on each position of the input: f32[B, L, L], rows sum to 1.

    Attention rollout (Abnar & Zuidema 2020): heads are averaged, the residual counts for half of
    each state, and the layers are multiplied.

    Args:
      maps: f32[B, A, L, L] of each block, first block first.
    """
    residual = jnp.eye(maps[0].shape[-1], dtype=maps[0].dtype)
    flow = residual
    for attention in maps:
        flow = (attention.mean(axis=1) + residual) / 2 @ flow
    return flow


def attention_rollout(maps: Sequence, pooling: str, sides: tuple[int, int] = (1, 1)):
    """`rollout` of a Vision Transformer as pictures: f32[B, h, w], each patch's share of the
    image's vector.

    Args:
      maps: f32[B, A, L, L] of each block, first block first.
      pooling: "class", the row of the first position; "mean" of all rows; or "patch_mean" of all
        but the first.
      sides: height and width of the images, or two numbers in the same proportion.

    Raises:
      BadInput: if the patches do not fill such a rectangle.
    """
    flow = rollout(maps)
    if pooling == "patch_mean":
        flow = flow[:, 1:, 1:]
    flow = flow[:, 0, 1:] if pooling == "class" else flow.mean(axis=1)
    patches = flow.shape[1]
    rows = round(math.sqrt(patches * sides[0] / sides[1]))
    require(
        rows > 0 and patches % rows == 0 and patches * sides[0] == rows**2 * sides[1],
        f"attention_rollout: {patches} patches do not fill a rectangle of {sides[0]} by {sides[1]}",
    )
    return flow.reshape(len(flow), rows, -1)


# ---------------------------------------------------------------------------------------- mistakes


def worst(logits, labels, k: int) -> np.ndarray:
    """The mistakes with the largest loss, most wrong first: the indices of at most k rows.

    Args:
      logits: f32[B, K].
      labels: i32[B].
      k: maximum number of mistakes.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    losses -= np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    return wrong[np.argsort(-losses[wrong], kind="stable")][:k]


def counterparts(logits, labels, rows) -> np.ndarray:
    """Correctly classified rows to see some rows beside: i64[R, 2], of each row's true class, and
    of its predicted one; -1 where a class has none.

    Of several, the one with the nearest logits, and one that is not yet taken rather than again.

    Args:
      logits: f32[B, K].
      labels: i32[B].
      rows: R of them, such as `worst`.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    predicted = logits.argmax(axis=1)
    correct, taken = predicted == labels, np.zeros(len(labels), bool)
    beside = np.full((len(rows), 2), -1)
    for i, row in enumerate(rows):
        for side, kind in enumerate((labels[row], predicted[row])):
            known = np.flatnonzero(correct & (labels == kind) & (np.arange(len(labels)) != row))
            if len(known):
                distances = np.square(logits[known] - logits[row]).sum(axis=1)
                nearest = known[np.lexsort((distances, taken[known]))[0]]
                beside[i, side], taken[nearest] = nearest, True
    return beside


# ----------------------------------------------------------------------------------------- figures


def title(label: str, predicted: str, probability: float) -> str:
    """The title of an image: true class, predicted class and its probability, on two lines if the
    names are long; or of a correct one, its class and probability."""
    label, predicted = (n if len(n) <= 20 else f"{n[:19]}…" for n in (label, predicted))
    if label == predicted:
        return f"{label} ✓  {probability:.0%}"
    space = " " if len(label + predicted) <= 16 else "\n"
    return f"{label}{space}→ {predicted}  {probability:.0%}"


def _show(axes, image) -> None:
    """Shows an image [H, W, C], u8 or float; the mean of its channels if it is neither grey nor
    RGB."""
    image = np.asarray(image)
    if image.dtype != np.uint8:  # normalised somehow: rescaled to its own range
        low, high = float(image.min()), float(image.max())
        image = np.uint8(255 * (image - low) / max(high - low, 1e-12))
    height, width = image.shape[:2]
    if image.shape[-1] != 3:
        image = image.mean(axis=-1)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))


def draw_mistakes(images, titles: Sequence[str], beside: Sequence, columns: int = 2):
    """A grid of mistakes, each beside correct ones of its true and of its predicted class.

    Args:
      images: u8[B, H, W, C], or floats.
      titles: B titles, from `title`.
      beside: for each image two pairs (image, title) of correct ones, or None where there is none.
      columns: mistakes per row.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    rows = max(1, math.ceil(len(images) / columns))
    drawn = figure(5.4 * columns, 2.1 * rows + 0.4)
    # A narrow column between groups keeps them apart.
    widths = [1, 1, 1, 0.15] * columns
    grid = drawn.subplots(rows, 4 * columns, squeeze=False, width_ratios=widths)
    for axes in grid.ravel():
        axes.set_axis_off()
    cells = grid.reshape(rows * columns, 4)
    for axes, image, text, others in zip(cells, images, titles, beside, strict=False):
        for place, pair in zip(axes[:3], ((image, text), *others), strict=True):
            if pair is None:
                place.text(0.5, 0.5, "no correct one", ha="center", va="center", fontsize=8)
                continue
            _show(place, pair[0])
            place.set_title(pair[1], fontsize=9, color="C3" if pair[0] is image else "black")
    heading = "true → predicted, probability; then correct ones of the true and the predicted class"
    drawn.suptitle(heading if len(images) else "no mistakes", fontsize=10)
    return drawn


def draw_confusion(matrix, classes: Sequence[str]):
    """Counts by true class (row) and predicted class (column), coloured by the share of the row.

    Counts are printed for up to 30 classes, class names for up to 60.

    Args:
      matrix: int[K, K].
      classes: K names.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    matrix, size = np.asarray(matrix), len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 1.5 + 0.45 * size), 16.0) if size <= 60 else 8.0
    drawn = figure(side + 1, side)
    axes = drawn.subplots()
    colours = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    drawn.colorbar(colours, ax=axes, label="share of the true class", shrink=0.7)
    right = np.trace(matrix)
    axes.set_title(f"{right} of {matrix.sum()} right ({right / max(matrix.sum(), 1):.2%})")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size <= 60:
        axes.set_xticks(range(size), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(size), classes)
    for i, j in np.argwhere(matrix) if size <= 30 else ():
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, matrix[i, j], ha="center", va="center", color=colour, fontsize=8)
    return drawn


def draw_maps(images, maps: dict[str, np.ndarray], titles: Sequence[str]):
    """Each image, then the image under each of its maps, which are scaled to their own range; two
    images per row.

    Args:
      images: u8[B, H, W, C], or floats.
      maps: {name: f32[B, h, w]}, each stretched over the image.
      titles: B titles, from `title`.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    span = 1 + len(maps)
    across = 2 if span <= 4 else 1  # images per row: pairs stand side by side
    rows = max(1, math.ceil(len(images) / across))
    drawn = figure(1.7 * span * across, 2.1 * rows)
    grid = drawn.subplots(rows, span * across, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    cells = grid.reshape(rows * across, span)
    for i, (image, text) in enumerate(zip(images, titles, strict=True)):
        height, width = image.shape[:2]
        _show(cells[i][0], image)
        cells[i][0].set_title(text, fontsize=9)
        for axes, name in zip(cells[i][1:], maps, strict=True):
            _show(axes, image)
            if i < across:
                axes.set_title(name, fontsize=9)
            heat = np.asarray(maps[name][i], np.float32)
            heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
            place = {"extent": (0, width, height, 0), "interpolation": "bilinear"}
            axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65, **place)
    return drawn
