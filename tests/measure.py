"""What is too long for CI, by name: `python -m tests.measure` lists them, `python -m tests.measure
grid` runs one.

A test belongs here with `@pytest.mark.measure("NAME")` if it takes minutes, needs packages of
rivals, or repeats at every point of a grid what CI asserts on a cover of it. Figures that come from
here go into the READMEs with their commit.
"""

import subprocess
import sys

TESTS = {
    "grid": "the laws on every mesh x model x parts, and checkpoints between every pair of meshes",
    "pods": "the pages of tests/goldens/pods that CI leaves out, and splash attention on a TPU",
    "survival": "a run interrupted at 304 of its writes, always to the same end (15 minutes)",
    "processes": "each key of a config changed on one of two or four processes: all of them refuse",
    "images": "Fashion-MNIST as 70,000 PNG files, and a run on them beside one on the set",
    "configs": "two steps of configs that differ from another's in their data or size alone",
    "models": "every model with explicit axes, recomputed and in bfloat16: values and gradients",
    "published": "SmolLM2's greedy text beside that of transformers, 64 tokens after five prompts",
    "serving": "10,000 requests to a BERT of 6 layers, beside one by one and transformers",
    "speculative": "tokens a pass that a draft saves a GPT of the addresses, and time (30 minutes)",
    "contests": "every case of scripts/bench.py against the other libraries, a round each",
}
ALONE = {"serving"}  # in one process, as it measures time, and prints what it measured
COMMANDS = {
    "speed": (
        "the tables of speed in configs/README.md, all rounds (an hour on two cores)",
        [
            ["scripts/bench.py", case]
            for case in ("cnn", "bert", "gpt", "vit", "resnet18", "rnn", "translate", "generate",
                         "input", "start", "sweep", "overhead", "growth")
        ],
    ),
    "g2p": (
        "g2p-en's GRUs in our encoder-decoder: error rates on 2,000 words of CMUdict",
        [["tests/support/g2p.py"]],
    ),
    "parity": (
        "the table of common/weights/README.md: every family beside transformers",
        [["tests/support/parity.py"]],
    ),
    "compression": (
        "what int8, 80% zeros, updates of rank 8 and a teacher cost or bring (four hours)",
        [["tests/support/compressed.py", "--workdir", "runs/compression"]],
    ),
    "emoji": (
        "a small CLIP on emoji, three seeds of 20 minutes, beside TF-IDF and chance",
        [["tests/support/emoji_measure.py", "--workdir", "runs/emoji"]],
    ),
    "masked": (
        "a linear probe of a masked autoencoder beside other features, three seeds (three hours)",
        [["tests/support/masked.py", "--workdir", "runs/masked"]],
    ),
    "export": (
        "every kind of model exported in a size that is used: bytes, and how nearly it agrees",
        [["tests/support/exports.py"]],
    ),
    "fuzz": (
        "2,000 tries of odd overrides and of workdirs that were touched",
        [["tests/support/fuzz.py", "--tries", "2000"]],
    ),
    "mutations": (
        "600 folders of other libraries' weights with one thing changed, beside transformers",
        [["tests/support/foreign_rival.py", "--tries", "600"]],
    ),
    "own_data": (
        "500 folders of pictures and texts, labelled files, prepared sets with one thing changed",
        [["tests/support/own_data.py", "--tries", "500"]],
    ),
    "g2p_curve": (
        "CMUdict from scratch, Transformer and LSTM x 3, as curves of 60 minutes (6 hours)",
        [["tests/support/g2p_curve.py", "--workdir", "runs/g2p"]],
    ),
    "translate": (
        "English-Spanish in 30 minutes beside torch's nn.Transformer and a copy (1.5 hours)",
        [["tests/support/translate_rival.py"]],
    ),
    "results": (
        "the table of results in configs/README.md, three seeds a row (hours)",
        [["scripts/results.py", "--workdir", "runs/results"]],
    ),
}  # fmt: skip


def main(words: list[str]) -> int:
    """Runs what `words` name; returns the exit code of the first that fails."""
    known = TESTS | {name: what for name, (what, _) in COMMANDS.items()}
    unknown = [word for word in words if word not in known]
    if not words or unknown:
        lines = [f"{name:13}{what}" for name, what in known.items()]
        print(*[f"error: no measure {word!r}" for word in unknown], *lines, sep="\n")
        return 2 if unknown else 0
    for word in words:
        commands = [["-m", "pytest", "--measure", word, *(("-n", "0") if word in ALONE else ())]]
        if word in COMMANDS:
            commands = COMMANDS[word][1]
        for command in commands:
            code = subprocess.run([sys.executable, *command]).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
