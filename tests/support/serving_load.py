"""What measures servers: a BERT of 6 layers and width 384 with its tokenizer, texts of a length,
clients that ask again and again, and the same weights by `transformers` behind FastAPI:

    python tests/support/serving_load.py FOLDER PORT
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
from helpers import free_port

WORDS = [f"w{i}" for i in range(500)]
CLASSES = [f"c{i}" for i in range(8)]


def write_bert(folder, layers: int = 6, width: int = 384) -> None:
    """Writes a classifier with random weights, so large that texts differ in their classes, in the
    Hugging Face layout."""
    import torch
    import transformers

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    names = dict(enumerate(CLASSES))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        intermediate_size=4 * width,
        max_position_embeddings=128,
        initializer_range=0.1,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    """Texts of `length` tokens, with [CLS] and [SEP]."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length - 2)) for _ in range(count)]


class Load(NamedTuple):
    """What clients saw: the answers, by the number of the request, requests a second, and the
    seconds of each."""

    answers: list
    rate: float
    seconds: np.ndarray

    def line(self) -> str:
        """A row of the table."""
        half, most = np.percentile(1000 * self.seconds, [50, 99])
        return f"{self.rate:7.1f} requests/s, p50 {half:6.1f} ms, p99 {most:6.1f} ms"


def ask(connection: http.client.HTTPConnection, value) -> tuple[int, dict]:
    """(status, answer) of a request for a prediction."""
    body = json.dumps({"inputs": [value]})
    connection.request("POST", "/predict", body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def load(port: int, asked: list, clients: int) -> Load:
    """Asks everything, by clients that each wait for an answer before they ask on, and leave once
    the server is gone: the rest of the answers is None."""
    answers, seconds = [None] * len(asked), np.zeros(len(asked))

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for i in range(first, len(asked), clients):
            begun = time.perf_counter()
            try:
                answers[i] = ask(connection, asked[i])
            except (OSError, http.client.HTTPException):
                return
            seconds[i] = time.perf_counter() - begun

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(answers, len(asked) / (time.perf_counter() - begun), seconds)


def rival(folder: str, port: int) -> None:
    """Serves the weights by `transformers`, as its users do: a function that FastAPI calls in its
    threads."""
    import torch
    import transformers
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    app = FastAPI()

    class Asked(BaseModel):
        inputs: list[str]

    @app.post("/predict")
    def predict(asked: Asked) -> dict:
        with torch.inference_mode():
            inputs = tokenizer(asked.inputs, padding=True, truncation=True, return_tensors="pt")
            shares = torch.softmax(model(**inputs).logits, -1).tolist()
        names = model.config.id2label
        return {"results": [{names[i]: x for i, x in enumerate(row)} for row in shares]}

    uvicorn.run(app, port=port, log_level="warning")


@contextlib.contextmanager
def rival_process(folder):
    """`rival` as a process of its own: its port."""
    port = free_port()
    words = [sys.executable, __file__, str(folder), str(port)]
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": path})
    try:
        while True:
            assert process.poll() is None
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                ask(connection, WORDS[0])
                break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    rival(sys.argv[1], int(sys.argv[2]))
