"""A fuzzer of data of one's own: one thing in a folder of pictures or of texts, in a file of
labelled texts, or in a set that TFDS prepared is changed at random. What is then read must be what
stands there, by an independent reading of the files, or a refusal in one line that names it.

    python tests/support/own_data.py --tries 500 --seed 0

A try is a pure function of its number.
"""

import argparse
import collections
import logging
import pathlib
import random
import shutil
import tempfile
import time
from typing import NamedTuple

import own_labelled
import own_pictures
import own_texts
import own_tfds
from fuzz import Change

from common.errors import BadInput

SECONDS = 20.0  # that a try may take


class Outcome(NamedTuple):
    """What a try came to; `wrong` is "" if it is right."""

    number: int
    ground: str
    change: Change
    end: str
    wrong: str


# Each has `make(folder)`, `change(rng, folder) -> Change`, `read(folder, scratch)`, the Counter of
# what the program reads, and `expected(folder)`, that of an independent reading, or None if it must
# be refused.
GROUNDS = {
    "pictures": own_pictures, "texts": own_texts, "labelled": own_labelled, "tfds": own_tfds,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- tries


def prepare(folder: pathlib.Path) -> None:
    """Writes what tries begin with."""
    for name, ground in GROUNDS.items():
        ground.make(folder / name)


def attempt(number: int, made: pathlib.Path, scratch: pathlib.Path) -> Outcome:
    """One try, in a folder `scratch` that is not there yet; `made` is by `prepare`."""
    rng = random.Random(number)
    name = sorted(GROUNDS)[number % len(GROUNDS)]
    ground, folder = GROUNDS[name], scratch / "data"
    shutil.copytree(made / name, folder, symlinks=True)
    change = ground.change(rng, folder)
    outcome = lambda end, wrong="": Outcome(number, name, change, end, wrong)
    want, begun = ground.expected(folder), time.monotonic()
    try:
        got = ground.read(folder, scratch / "prepared")
    except BadInput as error:
        message = str(error)
        if "\n" in message or len(message) > 1500:
            return outcome("refused", f"not one line of a length to read: {message[:300]}")
        if not any(word in message for word in (*change.words, folder.name)):
            return outcome("refused", f"names nothing that was changed: {message}")
        needless = change.readable or (
            change.readable is None and not change.words and want is not None
        )
        return outcome("refused", f"and it could be read: {message}" if needless else "")
    except Exception as error:
        return outcome("failed", f"{type(error).__name__} came out: {error}")
    if time.monotonic() - begun > SECONDS:
        return outcome("read", f"it took {time.monotonic() - begun:.0f} s")
    if change.readable is False or want is None:
        return outcome("read", "and it should have been refused")
    extra, less = got - want, want - got
    return outcome(
        "read", f"{len(less)} are missing, {len(extra)} are other" if got != want else ""
    )


def tell(outcome: Outcome) -> str:
    """An outcome in a line."""
    return f"try {outcome.number}, {outcome.ground}: {outcome.change.what}: {outcome.wrong}"


def main(tries: int, seed: int) -> bool:
    """Tries them, and prints what is wrong and a summary; whether anything is."""
    logging.disable(logging.WARNING)
    begun, ends, wrong = time.monotonic(), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as made:
        scratch = pathlib.Path(made)
        prepare(scratch / "made")
        for number in range(seed, seed + tries):
            outcome = attempt(number, scratch / "made", scratch / str(number))
            shutil.rmtree(scratch / str(number), ignore_errors=True)
            ends[outcome.ground, outcome.end] += 1
            if outcome.wrong:
                wrong += 1
                print(tell(outcome), flush=True)
    told = ", ".join(f"{ground} {end} {n}" for (ground, end), n in sorted(ends.items()))
    print(f"{tries} tries: {told}; {wrong} wrong; {time.monotonic() - begun:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="number of the first try")
    args = parser.parse_args()
    raise SystemExit(main(args.tries, args.seed))
