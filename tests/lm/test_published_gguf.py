"""SmolLM2-135M-Instruct from its GGUF file, beside `transformers` on the same weights."""

import os

import jax
import numpy as np
import pytest

from common.data import fetch
from common.errors import BadInput
from common.weights import tensors
from lm import generate, gguf, weights
from lm.pretrained import WEIGHTS

PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.mark.measure("published")
def test_greedy_text_is_that_of_transformers(tmp_path):
    """64 tokens after each of five prompts."""
    try:
        folder = fetch.weights("smollm2", WEIGHTS)
    except BadInput as error:
        pytest.skip(f"smollm2 cannot be had: {error}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    import torch

    loaded = weights.load(folder)
    assert loaded.model.vocab_size == loaded.facts.vocab_size == 49152
    config, values = gguf.load(tensors.gguf_of(folder))
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    missing, unexpected = reference.load_state_dict(
        {name: torch.tensor(x) for name, x in values.items()}, strict=False
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])  # which is tied
    tokens, lengths = generate.encode(loaded.facts, PROMPTS)
    end = generate.end_of(loaded.facts)
    written = generate.generate(
        *(loaded.model, loaded.params, tokens, lengths, jax.random.key(0)),
        steps=64,
        temperature=None,
        end=end,
    )
    for row, length, text, count in zip(tokens, lengths, *map(np.asarray, written), strict=True):
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor(row[:length][None]),
                max_new_tokens=64,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=0,
            )[0, length:].numpy()
        stop = int(np.argmax(np.append(expected, end) == end))
        assert text[:count].tolist() == expected[:stop].tolist()
    paris = generate.decode(
        loaded.facts,
        tokens[:1],
        lengths[:1],
        generate.Written(written.tokens[:1], written.lengths[:1]),
    )
    assert paris[0].startswith("The capital of France is Paris.")
