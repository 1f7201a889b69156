"""Look for a learning rate: python scripts/lr_range.py --config configs/vision/digits.py:mlp

Trains afresh for a hundred steps while the rate grows from --low to --high, a learning-rate range
test (Smith 2017), and shows the loss at each rate and where it falls fastest. The test ends where
the loss diverges. Nothing is written but the picture, if --png names one (needs `plots`).
"""

import io
import os
import sys

import numpy as np

import _checkout  # noqa: F401
from common import cli, inputs
from common.config import plain
from common.devices.terminal import say
from common.errors import require
from common.reports import plots
from common.training import rates

LINES, WIDTH = 20, 40  # of the text


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument("--low", type=float, default=1e-6, help="first rate (default 1e-6)")
    parser.add_argument("--high", type=float, default=10.0, help="last rate (default 10)")
    parser.add_argument("--steps", type=int, default=100, help="steps between them (default 100)")
    parser.add_argument("--png", help="file to plot loss against rate to; it must not exist yet")
    args, config = cli.parse(parser, argv)
    if args.png is not None:
        require(args.png.endswith(".png"), f"--png: {args.png} does not end in .png")
        require(not os.path.lexists(args.png), f"--png: {args.png} exists; name a new file")
        inputs.folder("--png", os.path.dirname(args.png) or ".")
        plots.figure(1, 1)  # whether there is Matplotlib
    live = sys.stderr.isatty()

    def show(step, rate, loss):
        if live:
            end = "\n" if step == args.steps else ""
            print(f"\rstep {step} of {args.steps}  rate {rate:.1e}  loss {loss:.4g}  ",
                  end=end, file=sys.stderr, flush=True)  # fmt: skip

    found = rates.range_test(plain(config), args.low, args.high, args.steps, show)
    if live:
        say("")
    print(as_text(found))
    print(advice(found, config.optim.lr, config.optim.schedule))
    if args.png is not None:
        picture = io.BytesIO()
        figure(found).savefig(picture, format="png", dpi=120)
        with open(args.png, "xb") as file:
            file.write(picture.getvalue())
    return 0


def as_text(found: rates.Tested) -> str:
    """The loss at some of the rates, with bars."""
    at = np.unique(np.linspace(0, len(found.rates) - 1, LINES).astype(int))
    finite = found.losses[np.isfinite(found.losses)]
    most = np.quantile(finite, 0.9) if len(finite) else 1.0
    lines = ["    rate      loss"]
    for i in at:
        share = found.losses[i] / most if most > 0 and np.isfinite(found.losses[i]) else 1.0
        bar = "#" * round(WIDTH * min(max(share, 0.0), 1.0))
        lines.append(f"{found.rates[i]:8.1e}  {found.losses[i]:8.4g}  {bar}")
    return "\n".join(lines)


def advice(found: rates.Tested, rate: float, schedule: str) -> str:
    """One line: the suggestion."""
    if found.suggested is None:
        return "the loss does not fall anywhere in this range: take more --steps, or other rates"
    end = f"diverges at {found.rates[-1]:.1e}" if found.diverged else "does not diverge"
    return (
        f"falls fastest at {found.suggested:.1e}, is lowest, smoothed, at {found.lowest:.1e}, "
        f"{end}; try --config.optim.lr={found.suggested:.1e} (the config has {rate:g}) as the peak "
        f"of {schedule!r}"
    )


def figure(found: rates.Tested):
    """Loss against rate, and the suggestion."""
    drawn = plots.figure(6, 4)
    axes = drawn.add_subplot()
    axes.plot(found.rates, found.losses, color="C0", alpha=0.3, linewidth=1)
    axes.plot(found.rates[: len(found.smooth)], found.smooth, color="C0")
    if found.suggested is not None:
        axes.axvline(found.suggested, color="C1", linestyle="--", label=f"{found.suggested:.1e}")
        axes.legend(title="falls fastest", frameon=False)
    start, least = found.smooth[0], found.smooth.min()
    axes.set_ylim(least - 0.1 * (start - least), start + 0.5 * (start - least) or None)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    return drawn


if __name__ == "__main__":
    cli.exit(main)
