"""One contender of scripts/bench.py: python scripts/contender.py KIND JSON

Sets up some work, does it once, and describes it in a line of JSON on standard output:
{"unit": "example", "units": 128, …}. Then, for each number on standard input, it does the work that
many times and answers with the seconds taken. A process of its own keeps one library's threads,
memory and settings from another's.

KIND is a function of this file or of `pipelines`. The networks of other libraries are written as
their users write them: `train_on_batch` for Keras, the loop of its tutorials for torch, the
library's own class for `transformers`.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

import _checkout  # noqa: F401
from pipelines import files_ours, files_torchvision, input_ours, input_torch  # noqa: F401

LIBRARIES = "jax", "flax", "keras", "torch", "torchvision", "transformers"


def ours(config: str, overrides: list[str], high: dict[str, int]) -> tuple[Callable, dict]:
    """Our training step, on one batch of random numbers.

    Args:
      config: FILE.py:VARIANT.
      overrides: as on the command line of scripts/train.py.
      high: {name of a batch array: exclusive bound of its random integers}; arrays not named are
        filled with 1.
    """
    import jax

    from common import tree
    from common.config import load, plain
    from common.devices import mesh, runtime
    from common.planning import compiled
    from common.sections import call
    from common.training import program

    settings = plain(load(config, overrides, program.sections))
    call(runtime.start, settings["runtime"])
    made = compiled.outlined_program(settings, jax.devices())._replace(resident={})
    rng = np.random.default_rng(0)

    def filled(name, like):
        is_integer = np.issubdtype(like.dtype, np.integer)
        values = rng.integers(0, high[name], like.shape) if name in high else np.ones(like.shape)
        values = values if is_integer or name not in high else rng.random(like.shape)
        return jax.device_put(values.astype(like.dtype), like.sharding)

    batch = {name: filled(name, like) for name, like in program.abstract_arguments(made)[2].items()}
    hypers = mesh.put_replicated(made.layout, made.hypers)
    jax.set_mesh(made.layout.mesh)
    state = made.create(hypers)

    def work(times):
        nonlocal state
        before = None
        for _ in range(times):
            state, _, finite = made.step(hypers, state, batch, {})
            jax.block_until_ready(before)
            before = finite
        jax.block_until_ready(state)

    units = made.plan.batch_size
    flops = made.task.flops and made.task.flops * units
    parameters = tree.count(state.params)
    return work, {"units": units, "flops": flops, "parameters": parameters}


# ---------------------------------------------------------------- the small CNN, in other libraries


def _digits(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(f32[B, 28, 28, 1], i32[B]) of random numbers."""
    rng = np.random.default_rng(0)
    images = rng.random((batch_size, 28, 28, 1), np.float32)
    return images, rng.integers(0, 10, batch_size).astype(np.int32)


def flax_cnn(batch_size: int) -> tuple[Callable, dict]:
    """The small CNN in plain flax and optax."""
    import flax.linen as nn
    import jax
    import optax

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (32, 64):
                x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
            return nn.Dense(10)(x)

    images, labels = _digits(batch_size)
    model, optimizer = Plain(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = model.apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    def work(times):
        nonlocal params, state
        for _ in range(times):
            params, state = step(params, state, images, labels)
        jax.block_until_ready(params)

    return work, {"units": batch_size, "parameters": count}


def keras_cnn(batch_size: int, backend: str) -> tuple[Callable, dict]:
    """The small CNN in Keras, on "jax" or "torch"."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    layers = keras.layers
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for width in (32, 64):
        model.add(layers.Conv2D(width, 3, activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    images, labels = _digits(batch_size)

    def work(times):
        for _ in range(times):
            model.train_on_batch(images, labels)

    return work, {"units": batch_size, "parameters": model.count_params()}


def torch_cnn(batch_size: int, compiled: bool) -> tuple[Callable, dict]:
    """The small CNN in torch, eager or with `torch.compile`."""
    import torch
    from torch import nn

    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    images, labels = _digits(batch_size)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels).long()
    loss = lambda model: nn.functional.cross_entropy(model(inputs), targets)
    work = _torch_steps(model, loss, compiled, torch.optim.Adam)
    return work, {"units": batch_size, "parameters": _count(model)}


def _count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _torch_steps(model, loss: Callable, compiled: bool, optimizer) -> Callable:
    """Training steps as in torch's tutorials."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    run = torch.compile(model) if compiled else model
    optimizer = optimizer(model.parameters(), lr=1e-3)

    def work(times):
        for _ in range(times):
            optimizer.zero_grad()
            loss(run).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work


# ----------------------------------------------------------------------------------- transformers


def transformers(
    model: str, settings: dict, inputs: dict[str, list], batch_size: int
) -> tuple[Callable, dict]:
    """A training step of a `transformers` class, on torch, with torch's AdamW.

    Args:
      model: e.g. "BertForMaskedLM".
      settings: of its config class.
      inputs: {name: [shape without B, exclusive bound of its integers, or 0 for floats]}.
      batch_size: B.
    """
    import torch
    import transformers as library

    cls = getattr(library, model)
    torch.manual_seed(0)
    network = cls(cls.config_class(**settings))
    rng = np.random.default_rng(0)

    def filled(shape, high):
        shape = batch_size, *shape
        numbers = rng.integers(0, high, shape) if high else rng.random(shape, np.float32)
        return torch.from_numpy(numbers).to("cuda" if torch.cuda.is_available() else "cpu")

    batch = {name: filled(*spec) for name, spec in inputs.items()}
    loss = lambda model: model(**batch).loss
    work = _torch_steps(network, loss, False, torch.optim.AdamW)
    return work, {"units": batch_size, "parameters": _count(network)}


# ------------------------------------------------------------------------------- recurrent networks


def _sequences(batch_size: int, length: int, width: int) -> np.ndarray:
    """f32[B, L, D] of random numbers."""
    return np.random.default_rng(0).normal(size=(batch_size, length, width)).astype(np.float32)


def rnn_ours(
    what: str, batch_size: int, length: int, width: int, layers: int
) -> tuple[Callable, dict]:
    """Our LSTM: its outputs, or the gradients of their squares by parameters and inputs."""
    import jax
    import jax.numpy as jnp

    from common.devices import runtime
    from common.nn.recurrent import RecurrentStack

    runtime.start()

    class Layers(RecurrentStack):
        def __call__(self, x):
            return self.stack(x)[0]

    model = Layers(width=width, layers=layers)
    x = jnp.asarray(_sequences(batch_size, length, width))
    params = jax.jit(model.init)(jax.random.key(0), x)
    outputs = jax.jit(model.apply)
    gradients = jax.jit(jax.grad(lambda *inputs: (model.apply(*inputs) ** 2).sum(), (0, 1)))

    def work(times):
        for _ in range(times):
            result = outputs(params, x) if what == "outputs" else gradients(params, x)
        jax.block_until_ready(result)

    passes = 1 if what == "outputs" else 3
    flops = passes * batch_size * model.stack_flops(length, width)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return work, {"units": batch_size, "flops": flops, "parameters": count}


def rnn_torch(
    what: str, batch_size: int, length: int, width: int, layers: int
) -> tuple[Callable, dict]:
    """`torch.nn.LSTM`; arguments as in `rnn_ours`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.LSTM(width, width, layers, batch_first=True).to(device)
    x = torch.from_numpy(_sequences(batch_size, length, width)).to(device)
    x.requires_grad_(what == "gradients")

    def once():
        if what == "outputs":
            with torch.inference_mode():
                return model(x)
        model.zero_grad()
        x.grad = None
        return (model(x)[0] ** 2).sum().backward()

    def work(times):
        for _ in range(times):
            once()
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"units": batch_size, "parameters": _count(model)}


# -------------------------------------------------------------------------------------- generation


def generate_ours(settings: dict, batch_size: int, prompt: int, new: int) -> tuple[Callable, dict]:
    """Greedy decoding by our GPT with its cache.

    Args:
      settings: fields of `lm.gpt.GPT`.
      batch_size, prompt, new: rows, prompt tokens, generated tokens.
    """
    import jax
    import jax.numpy as jnp

    from common.devices import runtime
    from lm import generate, gpt

    runtime.start()
    model = gpt.GPT(**settings)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, settings["vocab_size"], (batch_size, prompt)), jnp.int32)
    key, lengths = jax.random.key(0), jnp.full(batch_size, prompt, jnp.int32)
    params = jax.jit(model.init)(key, tokens)["params"]

    def work(times):
        for _ in range(times):
            generated = generate.generate(model, params, tokens, lengths, key, steps=new)
            jax.block_until_ready(generated.tokens)

    return work, {"unit": "token", "units": batch_size * new}


def generate_transformers(
    settings: dict, batch_size: int, prompt: int, new: int
) -> tuple[Callable, dict]:
    """Greedy decoding by GPT-2 of `transformers` with its cache; arguments as in `generate_ours`,
    with the settings of `GPT2Config`."""
    import torch
    import transformers as library

    torch.manual_seed(0)
    model = library.GPT2LMHeadModel(library.GPT2Config(**settings)).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = torch.randint(0, settings["vocab_size"], (batch_size, prompt)).to(model.device)

    def work(times):
        for _ in range(times):
            with torch.inference_mode():
                model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )

    return work, {"unit": "token", "units": batch_size * new}


# ------------------------------------------------------------------------------------ the reference


def matmul() -> tuple[Callable, dict]:
    """A product of two square matrices by XLA, float32 on a CPU and bfloat16 elsewhere: the
    reference for the others' FLOP/s."""
    import jax

    from common.devices import runtime

    runtime.start()
    size, dtype = (2048, "float32") if jax.default_backend() == "cpu" else (8192, "bfloat16")
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)

    def work(times):
        for _ in range(times):
            result = product(a, b)
        jax.block_until_ready(result)

    facts = {"unit": "product", "units": 1, "flops": 2 * size**3}
    return work, facts | {"environment": runtime.environment()}


def _machine() -> dict:
    """The device and library versions of this process."""
    versions = {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}
    device = platform.machine()
    if "jax" in sys.modules:
        device = sys.modules["jax"].devices()[0].device_kind
    elif "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        device = sys.modules["torch"].cuda.get_device_name()
    return {"device": device, "versions": versions}


def main() -> None:
    """Sets up the work, describes it, and repeats it as standard input asks."""
    stdout = sys.stdout
    sys.stdout = sys.stderr  # libraries may print, and only answers go to stdout
    kind, settings = sys.argv[1:]
    try:
        work, facts = globals()[kind](**json.loads(settings))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=stdout, flush=True)
        return
    work(1)
    print(json.dumps({"unit": "example"} | facts | _machine()), file=stdout, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work(int(line))
        print(time.perf_counter() - start, file=stdout, flush=True)


if __name__ == "__main__":
    main()
