"""A translation run beside plain torch: python tests/support/translate_rival.py [--minutes 30]

The same pairs, tokens and time, and a model of the same sizes by `torch.nn.Transformer`, written as
in torch's tutorials: batches of as many pairs, in random order, padded to the longest. Dropout is
where ours is, parameters decay as ours do, not at all, and an average of them translates. Either
run's schedule is as long as its time, by the speed of its first steps. Printed are sacreBLEU and
chrF of the held-out pairs, both translated greedily, training tokens a second (of sources and
targets, without padding), and the scores of the sources themselves, as if nothing were translated.
On two cores: an hour and a half.
"""

import argparse
import itertools
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from helpers import ROOT, load

from lm.data import pairs
from lm.seq2seq import scores

SHARE = 0.9  # of the time for training; the rest is for compilation and evaluation


def config_of(name: str, **overrides) -> dict:
    """The completed config."""
    return load(f"{ROOT}/configs/lm/{name}.py", **overrides)


def tokens_of(source) -> int:
    """Tokens of a training set, of both sides, without padding."""
    return sum(map(len, source.read.encoded[:2]))


# -------------------------------------------------------------------------------------------- ours


def ours(name: str, minutes: float, folder: pathlib.Path, per_row: float) -> dict:
    """Trains by scripts/train.py, and evaluates greedily and with four beams."""

    def run(at: str, steps: int, *more: str) -> dict:
        command = [sys.executable, "scripts/train.py", "--config", f"configs/lm/{name}.py"]
        command += ["--workdir", str(folder / at), f"--config.train.duration={steps} steps"]
        command += ["--config.evals.valid=None", "--config.checkpoint.every=100%", *more]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / at / "result.json").read_text())

    short = "--config.evals.test=None", "--config.train.log_every=10 steps"
    rate = run("short", 60, *short)["examples_per_second"]
    rows = config_of(name)["train"]["batch_size"]
    steps = int(SHARE * 60 * minutes * rate / rows)
    beam = ("--config.evals.beam.split=test", "--config.evals.beam.every=100%")
    beam += ("--config.evals.beam.beams=4",)
    greedy = "--config.evals.test.beams=1", "--config.evals.test.show=0"
    done = run("long", steps, *greedy, *beam)
    seconds = done["wall_seconds"]
    return {
        "greedy": done["eval"]["test"],
        "beam": done["eval"]["beam"],
        "steps": steps,
        "seconds": seconds,
        "tokens_per_second": done["examples_per_second"] * per_row,
    }


# ------------------------------------------------------------------------------------------- torch


def rival(config: dict, source, test, batch: int, minutes: float) -> dict:
    """The same by plain torch."""
    import torch
    from torch import nn
    from torch.optim import swa_utils

    torch.manual_seed(0)
    fields, facts = config["model"], source.facts
    width, rate = fields["width"], config["optim"]["lr"]
    size, dropout = facts.target.vocab_size, fields["dropout"] or 0.0

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(size + 1, width, padding_idx=size)
            nn.init.normal_(self.table.weight, std=width**-0.5)
            waves = torch.arange(512)[:, None] * torch.exp(
                torch.arange(0, width, 2) * (-math.log(10000.0) / width)
            )
            places = torch.stack([waves.sin(), waves.cos()], dim=-1).reshape(512, width)
            self.register_buffer("places", places)
            self.dropout = nn.Dropout(dropout)
            self.both = nn.Transformer(
                width,
                fields["heads"],
                fields["layers"],
                fields["layers"],
                fields["hidden"],
                dropout,
                batch_first=True,
                norm_first=fields["pre_norm"],
            )
            for layer in (*self.both.encoder.layers, *self.both.decoder.layers):
                layer.dropout = nn.Identity()  # inside the MLP
                for name in ("self_attn", "multihead_attn"):
                    if hasattr(layer, name):
                        getattr(layer, name).dropout = 0.0  # of the attention map

        def embed(self, ids):
            x = self.table(ids) * math.sqrt(width) + self.places[: ids.shape[1]]
            return self.dropout(x)

        def encode(self, source):
            return self.both.encoder(self.embed(source), src_key_padding_mask=source == size)

        def decode(self, memory, source, tokens):
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            x = self.both.decoder(
                self.embed(tokens),
                memory,
                tgt_mask=mask,
                memory_key_padding_mask=source == size,
                tgt_is_causal=True,
            )
            return x @ self.table.weight[:size].T

    def padded(lists):
        longest = max(map(len, lists))
        return torch.tensor([[*ids, *[size] * (longest - len(ids))] for ids in lists])

    encoded = source.read.encoded
    cut = lambda flat, bounds: [flat[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    sources, targets = map(cut, encoded[:2], encoded.bounds)
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    mean = swa_utils.get_ema_multi_avg_fn(config["train"]["average"])
    average = swa_utils.AveragedModel(model, multi_avg_fn=mean)
    smoothing = config["loss"]["label_smoothing"] or 0.0
    loss = nn.CrossEntropyLoss(ignore_index=size, label_smoothing=smoothing)
    rng, order = np.random.default_rng(0), []
    begun, total, step, tokens = time.perf_counter(), 0, 0, 0
    model.train()
    while total == 0 or step < total:
        if len(order) < batch:
            order = rng.permutation(len(sources)).tolist()
        rows, order = order[:batch], order[batch:]
        source_ids = padded([sources[i] for i in rows])
        written = padded([targets[i] for i in rows])
        read = padded([[facts.start, *targets[i][:-1]] for i in rows])
        if step == 60:
            each = (time.perf_counter() - begun) / step
            total = int(SHARE * 60 * minutes / each)
        horizon = total or 10**9
        warm = max(1, int(0.1 * total)) if total else 300
        left = max(0.0, 1 - max(0, step - warm) / max(1, horizon - warm))
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / warm, 1) * left
        optimizer.zero_grad()
        logits = model.decode(model.encode(source_ids), source_ids, read)
        loss(logits.reshape(-1, size), written.reshape(-1)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config["optim"]["clip"])
        optimizer.step()
        average.update_parameters(model)
        tokens += sum(len(sources[i]) + len(targets[i]) for i in rows)
        step += 1
    seconds = time.perf_counter() - begun
    model = average.module.eval()
    texts = []
    with torch.inference_mode():
        held = test.read.encoded
        rows = test.read.packed.members
        own = cut(held.sources, held.bounds[0])
        for at in range(0, len(rows), 64):
            source_ids = padded([own[i] for i in rows[at : at + 64]])
            memory = model.encode(source_ids)
            made = torch.full((len(source_ids), 1), facts.start)
            for _ in range(facts.target.length):
                last = model.decode(memory, source_ids, made)[:, -1].argmax(-1)
                made = torch.cat([made, last[:, None]], dim=1)
                if (made[:, 1:] == facts.end).any(dim=1).all():
                    break
            for ids in made[:, 1:].tolist():
                ids = ids[: ids.index(facts.end)] if facts.end in ids else ids
                texts.append(facts.target.tokenizer.decode(ids, skip_special_tokens=False))
    values = scores.of_texts(texts, [target for _, target in test.facts.texts])
    made = {"greedy": values, "steps": step, "seconds": seconds}
    return made | {"tokens_per_second": tokens / seconds}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--config", default="translate_bible", help="or translate_help")
    args = parser.parse_args()
    config = config_of(args.config)
    sets = pairs.load_sources({"train": "train", "test": "test"}, **config["data"])
    train, test = sets["train"], sets["test"]
    per_row = tokens_of(train) / train.size
    batch = round(config["train"]["batch_size"] * len(train.read.encoded.rows) / train.size)
    with tempfile.TemporaryDirectory() as folder:
        us = ours(args.config, args.minutes, pathlib.Path(folder), per_row)
    them = rival(config, train, test, batch, args.minutes)
    copy = scores.of_texts(*zip(*test.facts.texts, strict=True))
    print(f"{args.config}, {args.minutes:g} minutes, {batch} pairs a step: {us['steps']:,} steps "
          f"of ours, {them['steps']:,} of torch")  # fmt: skip
    print("| | BLEU | chrF | tokens a second |\n|---|---|---|---|")
    rows = {"ours, greedy": (us["greedy"], us), "ours, 4 beams": (us["beam"], us)}
    rows |= {
        "torch nn.Transformer, greedy": (them["greedy"], them),
        "the source, copied": (copy, {}),
    }
    for what, (values, run) in rows.items():
        speed = f"{run['tokens_per_second']:,.0f}" if run else ""
        print(f"| {what} | {values['bleu']:.1f} | {values['chrf']:.1f} | {speed} |")
    print(
        f"{us['tokens_per_second'] / them['tokens_per_second']:.2f} times torch's tokens a second"
    )
    print(copy["bleu_signature"], copy["chrf_signature"], sep="\n")


if __name__ == "__main__":
    main()
