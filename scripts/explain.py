"""Visualise a classifier's behaviour: python scripts/explain.py --workdir runs/digits [--set test]

For runs of vision.classify. Prints the accuracy over a set and writes into WORKDIR/explain:

    mistakes.png   the misclassified images with the largest loss, each beside a correctly
                   classified one of its true class and one of its predicted class
    confusion.png  the confusion matrix
    saliency.png   mistakes, each beside a correct one of its true class, then further correct ones,
                   with maps of the evidence for the predicted class: integrated gradients; Grad-CAM
                   at the last named layer that is not too coarse; attention rollout for a Vision
                   Transformer

`--set` is one evaluator of the run's config, or a split of its data set such as 'test[:1000]'.
`--step` is latest (default), best, or a number. Needs the extra `plots`.

Published weights are explained on the data of a config, whose model gives way to theirs:
python scripts/explain.py --weights FOLDER --config configs/vision/imagenet_vit.py
"""

import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import _checkout  # noqa: F401
from common import cli
from common.errors import BadInput, require
from common.nn import model as models
from common.nn.layers import identity
from common.reports import plots
from common.training.loop import eval_context
from common.training.saved import opened, opened_weights, read_config, with_sets
from vision import explain
from vision.data.views import weighted_views

MOST = 200  # images in a picture: more take minutes to draw, and too many pixels


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    cli.add_model(parser)
    cli.add_config(parser, required=False)
    parser.add_argument("--set", help="evaluator or split (default: the run's first evaluator)")
    parser.add_argument(
        "--to", help="folder of the pictures (default: WORKDIR/explain, or explain)"
    )
    parser.add_argument("--count", type=int, default=16, help="images per picture (default: 16)")
    args, config = cli.parse_model(parser, argv)
    fits = 0 < args.count <= MOST
    require(fits, f"--count: {args.count} is not from 1 to {MOST}, which is what a picture holds")
    plots.figure(1, 1)  # without Matplotlib, fail before loading the run
    config = read_config(args.workdir) if config is None else config
    require(
        config["task"] == "vision.classify",
        f"{args.workdir or args.config}: a run of {config['task']}; only vision.classify is "
        "explained",
    )
    where = str(args.workdir or "the config")
    shown = args.set or next(iter(config["evals"]), "")
    config, keys = with_sets(config, [shown], where)
    name, evals = keys[shown], config["evals"]
    if args.weights is None:
        opening = opened(config, args.workdir, args.step)
    else:
        opening = opened_weights(config, args.weights)
    folder = epath.Path(args.to or (f"{args.workdir}/explain" if args.workdir else "explain"))
    with opening as (program, state, step):
        config = program.config
        context = eval_context(program, state, step)
        source = program.task.sources[name]
        several = source.facts.multi_label
        require(not several, f"{where}: images with several labels each are not explained")
        model = models.build(config, identity, num_classes=len(source.facts.classes))
        variables = {"params": context.params, **context.extra}
        prepare = partial(program.task.prepare, context.key, train=False)
        batches = context.batches(source, evals[name]["batch_size"])
        logits, labels = _logits(model, variables, prepare, batches, evals[name]["views"])
        correct = np.sum(logits.argmax(axis=1) == labels)
        share = correct / len(labels)
        print(f"step {step}, {shown}: accuracy {share:.4f} ({correct} of {len(labels)})")
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _pictures(model, variables, prepare, source, logits, labels, count=args.count)
        for file, caption, figure in drawn:
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=120)
            (folder / file).write_bytes(picture.getvalue())
            print(f"{folder / file}: {caption}")
    return 0


def _pictures(model, variables, prepare, source, logits, labels, *, count: int):
    """Yields (file, caption, figure)."""
    classes, predicted = source.facts.classes, logits.argmax(axis=1)
    wrong, correct = explain.worst(logits, labels, count), np.flatnonzero(predicted == labels)
    beside = explain.counterparts(logits, labels, wrong)
    rows = np.unique(np.concatenate([wrong, beside[beside >= 0].ravel(), correct[:count]]))
    place = {row: i for i, row in enumerate(rows.tolist())}
    batch = source.read(np.uint32(rows))
    batch |= {"index": np.uint32(rows), "valid": np.ones(len(rows), np.float32)}
    inputs = prepare(batch)["image"]
    # Draws the images as the model sees them.
    images = np.asarray(inputs) * np.float32(source.facts.std) + np.float32(source.facts.mean)
    images = np.uint8(np.clip(np.rint(255 * images), 0, 255))
    shares = np.asarray(jax.nn.softmax(logits[rows])).max(axis=1)
    pairs = zip(labels[rows], predicted[rows], shares, strict=True)
    titles = [explain.title(classes[true], classes[guess], share) for true, guess, share in pairs]
    shown = lambda row: None if row < 0 else (images[place[row]], titles[place[row]])

    caption = f"{len(wrong)} of {len(labels) - len(correct)} mistakes, the largest losses first"
    own = [place[row] for row in wrong.tolist()]
    others = [tuple(map(shown, pair)) for pair in beside.tolist()]
    figure = explain.draw_mistakes(images[own], [titles[i] for i in own], others)
    yield "mistakes.png", caption, figure

    matrix = np.zeros((len(classes), len(classes)), int)
    np.add.at(matrix, (labels, predicted), 1)
    caption = f"{len(classes)} classes, true by predicted"
    yield "confusion.png", caption, explain.draw_confusion(matrix, classes)

    mistakes = [row for pair in zip(wrong, beside[:, 0], strict=True) for row in pair if row >= 0]
    more = [row for row in correct if row not in mistakes]
    picked = [place[row] for row in (mistakes + more)[:count]]
    inputs, kinds = inputs[np.array(picked)], predicted[rows[picked]]
    black = prepare(batch | {"image": np.zeros_like(batch["image"])})["image"][np.array(picked)]
    maps, note = _maps(model, variables, inputs, kinds, black)
    caption = f"{len(picked)} images under {', '.join(maps)}{note}"
    titles = [titles[i] for i in picked]
    yield "saliency.png", caption, explain.draw_maps(images[picked], maps, titles)


def _logits(model, variables, prepare, batches, views: str) -> tuple[np.ndarray, np.ndarray]:
    """(logits f32[N, K], labels i32[N]) of a whole set, as its evaluator computes them."""

    @jax.jit
    def forward(variables, batch):
        seen = weighted_views(prepare(batch)["image"], views)
        return sum(share * model.apply(variables, view) for share, view in seen)

    logits, labels = [], []
    for batch in batches:
        valid = np.asarray(batch["valid"]) > 0
        logits.append(np.asarray(forward(variables, batch))[valid])
        labels.append(np.asarray(batch["label"])[valid])
    return np.concatenate(logits), np.concatenate(labels)


def _maps(model, variables, images, labels, baseline) -> tuple[dict[str, np.ndarray], str]:
    """({name: f32[B, h, w]}, a note of what there is not): every kind of map that the model
    supports."""
    logits_of = jax.tree_util.Partial(model.apply, variables)
    labels, note = jnp.asarray(labels), ""
    added = explain.integrated_gradients(logits_of, images, labels, baseline)
    maps = {"integrated gradients": jnp.abs(added).sum(axis=-1)}
    layers = explain.spatial(model.apply, variables, images)
    try:
        name = explain.layer_of(layers) if layers else None
    except BadInput as error:
        name, note = None, f"; no Grad-CAM: {str(error).removeprefix('grad_cam: ')}"
    if name is not None:
        cam = jax.jit(partial(explain.grad_cam, model.apply, name=name))
        maps[f"Grad-CAM at {name}"] = cam(variables, images, labels)
        if name != list(layers)[-1]:
            note = f"; Grad-CAM not at {list(layers)[-1]}, whose map is too coarse"
    attention = jax.jit(partial(explain.attention_maps, model.apply))(variables, images)
    if attention and hasattr(model, "pooling"):
        sides = images.shape[1:3]
        maps["attention rollout"] = explain.attention_rollout(attention, model.pooling, sides)
    return {name: np.asarray(heat) for name, heat in maps.items()}, note


if __name__ == "__main__":
    cli.exit(main)
