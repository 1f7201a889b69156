"""Mutated folders of weights beside what `transformers` makes of them.

python tests/support/foreign_rival.py --tries 600 --seed 0
"""

import argparse
import collections
import logging
import os
import pathlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import mutations
import numpy as np
from foreign_folders import TEXTS, Ground, grounds, ids, inputs_of, outputs_of
from tokenizers import Tokenizer

CLOSE = 1e-5  # of outputs, relative to the largest
SPECIAL = 3  # the text with special tokens
SECONDS = 5.0  # at most, for ours
THEIR_SECONDS = 20


class Rival:
    """Judges by what `transformers` makes of the same folder."""

    def __init__(self):
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers
        self.ends = collections.Counter()

    def outputs(self, folder: pathlib.Path, ground: Ground) -> np.ndarray:
        if (ground.folder / "model.gguf").exists():
            model = self.of_gguf(folder / "model.gguf")
        else:
            model, report = getattr(self.transformers, ground.auto).from_pretrained(
                folder, output_loading_info=True, dtype=self.torch.float32,
                attn_implementation="eager",
            )  # fmt: skip
            if report["missing_keys"] or report["mismatched_keys"]:
                raise ValueError("parameters at random")
        x = self.torch.tensor(inputs_of(ground.model))
        with self.torch.no_grad():
            if ground.facts is None:
                return model.eval()(x.permute(0, 3, 1, 2)).logits.numpy()
            both = {"decoder_input_ids": x.long()} if model.config.is_encoder_decoder else {}
            return model.eval()(x.long(), **both).logits.numpy()

    def of_gguf(self, path: pathlib.Path):
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        config = load_gguf_checkpoint(str(path))["config"]
        model = self.transformers.AutoModelForCausalLM.from_config(
            self.transformers.AutoConfig.for_model(**config), attn_implementation="eager"
        )
        told = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
        model.load_state_dict(told["tensors"])
        return model

    def ids(self, folder: pathlib.Path, ground: Ground) -> list[list[int]]:
        load = self.transformers.AutoTokenizer.from_pretrained
        if (ground.folder / "model.gguf").exists():
            made = load(folder, gguf_file="model.gguf")
        else:
            made = load(folder)
        return [list(made(text)["input_ids"]) for text in TEXTS]

    def __call__(self, tried, folder, ground, model, values, facts) -> str:
        ours = outputs_of(model, values)
        how, want = _theirs(lambda: self.outputs(folder, ground))
        self.ends[how.partition(":")[0]] += 1
        if want is None:
            return mutations.as_said(tried, folder, ground, model, values, facts)
        if want.shape != ours.shape or not _near(ours, want):
            return f"outputs: {how}, and ours differ"
        if facts is None:
            return ""
        how, want = _theirs(lambda: self.ids(folder, ground))
        want = ids(ground.facts.tokenizer) if want is None else want
        got = ids(facts.tokenizer)
        if ground.folder.name == "gguf":  # after a special token they forget the space
            del want[SPECIAL], got[SPECIAL]
        if tried.file == "tokenizer.json":  # its classes make another of some of its parts
            text = (folder / tried.file).read_text("utf-8-sig")
            whole = Tokenizer.from_str(text)
            want = got if got == ids(whole) else want
        return "" if got == want else f"ids: {how}: {want}, and ours {got}"


def _near(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return float(np.abs(ours - theirs).max()) <= CLOSE * float(np.abs(theirs).max())


def _theirs(load: Callable) -> tuple[str, Any]:
    """(how it ended, what it is or None); an end without a value compares with what was before."""

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(THEIR_SECONDS)
    try:
        return "theirs load", load()
    except Exception as error:
        return f"theirs fail: {type(error).__name__}", None
    finally:
        signal.alarm(0)


def main(tries: int, seed: int) -> bool:
    """Tries them, and prints what is wrong and a summary; whether anything is."""
    logging.disable(logging.WARNING)
    begun, ends, wrong, rival = time.monotonic(), collections.Counter(), 0, Rival()
    with tempfile.TemporaryDirectory() as made:
        scratch = pathlib.Path(made)
        known = {
            name: ground._replace(outputs=outputs_of(ground.model, ground.values))
            for name, ground in grounds(scratch / "grounds").items()
        }
        names = sorted(known)
        for number in range(seed, seed + tries):
            name, folder = names[number % len(names)], scratch / str(number)
            outcome = mutations.attempt(number, name, known[name], folder, rival)
            shutil.rmtree(folder)
            late = f"it took {outcome.seconds:.0f} s" if outcome.seconds > SECONDS else ""
            loaded = sum(end == "loaded" for end in outcome.ends.values())
            ends[("refused", "loaded in one way", "loaded")[loaded]] += 1
            if outcome.wrong or late:
                wrong += 1
                print(mutations.tell(outcome._replace(wrong=outcome.wrong or late)), flush=True)
    told = ", ".join(f"{count} {end}" for end, count in sorted((ends + rival.ends).items()))
    print(f"{tries} mutations: {told}; {wrong} wrong; {time.monotonic() - begun:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="number of the first try")
    args = parser.parse_args()
    raise SystemExit(main(args.tries, args.seed))
