"""From a config to a `Program`: task, optimizer, placement on devices, and the compiled step.

Training, evaluation, the laws, benchmarks and dry runs all start here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import imports, tree
from common.compress import lora, prune, quantize
from common.config import completed, plain, substitute, traced, untraced
from common.data import loading, order
from common.devices import agreement, ending, mesh, runtime
from common.errors import require
from common.nn import model as models
from common.nn.layers import identity
from common.runs import files, log, saves, workdir
from common.runs.history import why_stop
from common.sections import call, parameters
from common.task import Source, Task, Terms, purpose_key, split_key
from common.training import contract, directions, frozen, optim, products, terms
from common.training.duration import check_batch_size, plan, steps
from common.training.initialise import adopted, initialise
from common.training.step import Plan, TrainState, make_step, make_update, with_step_terms


class Program(NamedTuple):
    """A config prepared to run.

    Attributes:
      config: nested dict with every key.
      plan, saving: the sections `train` and `checkpoint`, durations in steps.
      task, optimizer: built with the config's own numbers, for use outside the step.
      layout: the mesh and its sharding rules.
      hypers: the traced numbers, on the device, and what `common.training.frozen` adds.
      create: jitted: hypers -> TrainState.
      adopt: jitted: (hypers, params, extra) -> TrainState of step 0 around these parameters.
      step: jitted: (hypers, state, batch, resident) -> (state, Terms, finite); donates the state.
      update: jitted: (hypers, state, sums, inputs, resident) -> (state, sums, Terms, finite), what
        the loop calls; see `common.training.step.make_update`. Donates the state.
      terms: the abstract Terms of a step.
      build: {'optim.lr': 0.1, …} -> (Task, Optimizer) of the config with these traced numbers.
      like: a TrainState of ShapeDtypeStructs with shardings.
      resident: the training set on the device, or {}.
      every: {evaluator: steps between its evaluations}.
    """

    config: dict
    plan: Plan
    saving: saves.Policy
    task: Task
    optimizer: optim.Optimizer
    layout: mesh.Layout
    hypers: dict
    create: Callable
    adopt: Callable
    step: Callable
    update: Callable
    terms: Terms
    build: Callable
    like: TrainState
    resident: dict
    every: dict


# ---------------------------------------------------------------------------------------- sections


def task_module(name: str):
    """Imports the module `config.task`. Raises `BadInput` if it cannot, or if it is not a task."""
    module = imports.module("config.task", name, "vision.classify")
    for function in ("sections", "sources", "make"):
        require(
            hasattr(module, function),
            f"config.task: {name!r} has no {function}; see common/task.py{imports.hidden(name)}",
        )
    imports.say_hidden("config.task", name)
    return module


def sections(config) -> dict[str, Callable]:
    """{section: the function it feeds}, of the program and of the task."""
    require(isinstance(config.get("task"), str), "config.task: required, e.g. 'vision.classify'")
    name = (config.get("optim") or {}).get("name", parameters(optim.make_optimizer)["name"].default)
    task = config["task"]
    module = task_module(task)
    with contract.explained(f"config.task: {task}: sections", contract.READ_MODULE, task):
        own = module.sections(config)
    contract.check_sections(task, own)
    return {
        **own,
        "optim": optim.make_optimizer,
        "optim.direction": directions.direction(name),
        "mesh": mesh.make_layout,
        "train": plan,
        "train.stop": why_stop,
        "checkpoint": saves.policy,
        "init": initialise,
        "compress.lora": lora.scheme,
        "compress.prune": prune.pruning,
        "compress.quantize": quantize.scheme,
        "runtime": runtime.start,
        "log": log.log_section,
    }


# ----------------------------------------------------------------------------------------- prepare


def prepare(
    config, devices=None, sources: dict[str, Source] | None = None, trains: bool = True
) -> Program:
    """Prepares a completed config: reads its data, checks it and lays it out. Writes nothing.

    Args:
      config: from `common.config.load`, or the same as nested dicts.
      devices: the devices to use; None is all.
      sources: data sets to use instead of those the config names.
      trains: whether it will take steps, and needs what the loss alone reads.

    Raises:
      BadInput: for anything the user can fix.
    """
    config = _with_adopted(config if isinstance(config, dict) else plain(config))
    layout = call(mesh.make_layout, config["mesh"], devices)
    if sources is None:
        task, known = config["task"], f"the sections {', '.join(config)}"
        module, where = task_module(task), f"config.task: {task}: sources"
        with ending.busy("reading the data"):
            with contract.explained(where, contract.READ_MODULE, task, known=known):
                sources = module.sources(config)
            contract.check_sources(task, sources)
            contract.check_reads(task, sources)
    agreement.require_same(
        {f"the data set {name}": source.fingerprint for name, source in sources.items()},
        "all of them need the same data",
    )
    with ending.busy("tracing the model"):
        program = lay_out(config, layout, sources)
    kept = frozen.arrays(program.task, layout) if trains else {}
    return program._replace(
        hypers=mesh.put_replicated(layout, frozen.numbers(program.hypers)) | kept,
        resident=mesh.put_replicated(layout, program.resident),
    )


def lay_out(config: dict, layout: mesh.Layout, sources: dict[str, Source]) -> Program:
    """A Program for these devices that puts nothing on them: they may belong to an absent machine.
    Its `hypers` and `resident` are still on the host.

    Raises:
      BadInput: for anything the user can fix.
    """
    config, module = _with_adopted(config), task_module(config["task"])
    contract.check_sources(config["task"], sources)
    for name, source in sources.items():
        most = f"{source.size:,} examples, more than {order.MOST_ROWS:,}"
        require(source.size <= order.MOST_ROWS, f"{split_key(name)}: {most}")
    size = sources["train"].size
    schedule = call(plan, config["train"], size)
    if schedule.sampling == "balanced":
        sources = sources | {"train": loading.balanced(sources["train"])}
    require(
        schedule.steps_per_call == 1 or bool(sources["train"].resident),
        "config.train.steps_per_call: this training set is read on the host, a step at a time",
    )
    mesh.check_batch(layout, schedule.batch_size // schedule.accumulate, "config.train.batch_size")
    for name, section in config.get("evals", {}).items():
        if "batch_size" in section:
            check_batch_size(f"config.evals.{name}.batch_size", section["batch_size"])
            mesh.check_batch(layout, section["batch_size"], f"config.evals.{name}.batch_size")

    def to_steps(text, where, low=0):
        return steps(
            text,
            where=where,
            batch_size=schedule.batch_size,
            size=size,
            total=schedule.total,
            low=low,
        )

    saving = call(saves.policy, config["checkpoint"], to_steps)
    call(why_stop, config["train"]["stop"], [])
    rule = call(prune.pruning, config["compress"]["prune"], to_steps)
    require(
        not (lora.of(config).rank and rule.kind),
        "config.compress: lora or prune, not both: begin another run by config.init.path, which "
        "takes the merged kernels",
    )
    hypers = _hypers(config)
    known = f"the sections {', '.join(config)}, and the sets {', '.join(sources)}"

    def build(values):
        changed = substitute(config, values)
        with contract.explained_in(config, "make", known):
            task = module.make(changed, sources, mesh.constrainer(layout))
        task = frozen.bound(contract.checked(config["task"], task), values, layout)
        section = changed["optim"]
        optimizer = call(
            optim.make_optimizer, section, schedule.total, to_steps, section["direction"]
        )
        optimizer = optim.limited(optimizer, lora.trained(config))
        return task, prune.pruned(optimizer, rule, config.get("model"), section["freeze"])

    optim.check_patterns(config["optim"])
    task, optimizer = build({})
    hypers |= frozen.shapes(task, layout)
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):  # as in a step
        abstract = with_step_terms(terms.check_task(config, task, schedule), optimizer)

    def adopt(hypers, params, extra):
        _, optimizer = build(hypers)
        average = {"params": optimizer.live(params), "extra": extra}
        average = jax.tree.map(jnp.copy, average if schedule.average is not None else {})
        return TrainState(jnp.uint32(0), params, extra, optimizer.init(params), average)

    def create(hypers):
        task, _ = build(hypers)
        return adopt(hypers, *task.init(purpose_key(hypers["seed"], "init")))

    with contract.explained_in(config, "init"):
        shapes = jax.eval_shape(create, hypers)
    models.check_shapes(shapes.params)
    lora.check(config, shapes.params)
    optim.check_tables(config["optim"], shapes.params)
    task = task._replace(partition=lora.partition(task.partition, shapes.params))
    where = f"config.task: {config['task']}: Task.partition"
    of_params = mesh.shardings(layout, task.partition, shapes.params, where)
    others = shapes._replace(params={})
    shardings = mesh.follow(layout, others, shapes.params, of_params)._replace(params=of_params)
    like = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    products.check_products(task, schedule, layout, like.params, like.extra)
    replicated = mesh.replicated(layout)
    step = make_step(build, layout, schedule, sources["train"].order)
    if task.gradients is not None:  # whose Terms may be others than those of the loss
        row = loading.batch_shapes(sources["train"], schedule.batch_size)
        abstract = jax.eval_shape(step, hypers, shapes, row, {})[1]
    compiled = partial(jax.jit, donate_argnums=1)
    return Program(
        config=config,
        plan=schedule,
        saving=saving,
        task=task,
        optimizer=optimizer,
        layout=layout,
        hypers=hypers,
        create=jax.jit(create, out_shardings=shardings),
        adopt=jax.jit(adopt, out_shardings=shardings),
        step=compiled(step, out_shardings=(shardings, replicated, replicated)),
        update=compiled(
            make_update(step, schedule),
            out_shardings=(shardings, replicated, replicated, replicated),
        ),
        terms=abstract,
        build=build,
        like=like,
        resident=sources["train"].resident or {},
        every={
            name: to_steps(evaluator.every, f"config.evals.{name}.every", low=1)
            for name, evaluator in task.evaluators.items()
        },
    )


def _with_adopted(config: dict) -> dict:
    """The config with what `init.adopt` takes from its weights."""
    return adopted(config, getattr(task_module(config["task"]), "weights_settings", None))


def described_count(made: Program) -> str:
    """'124,439,808 parameters', those of rows that only pad a table apart, and how many of them are
    trained, if not all."""
    padding = made.task.padding
    count = tree.count(made.like.params) - padding
    apart = f" (and {padding:,} in padding rows)" if padding else ""
    live, whole = (tree.count(x) for x in (made.optimizer.live(made.like.params), made.like.params))
    return f"{count:,} parameters{apart}" + (f", {live:,} of them trained" if live < whole else "")


def abstract_arguments(made: Program) -> tuple:
    """Abstract arguments of a program's step: (hypers, state, batch, resident)."""
    replicated, by_batch = mesh.replicated(made.layout), mesh.batch_sharding(made.layout)
    place = lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=replicated)
    replicate = lambda values: jax.tree.map(place, values)
    batch = {}
    if not made.resident:
        batch = loading.batch_shapes(made.task.sources["train"], made.plan.batch_size, by_batch)
    hypers = replicate(frozen.numbers(made.hypers)) | frozen.abstract(made.hypers)
    return hypers, made.like, batch, replicate(made.resident)


def _hypers(config: dict) -> dict:
    """The config's traced numbers, on the host."""
    require(0 <= config["seed"] < 2**32, f"config.seed: {config['seed']} is not in [0, 2^32)")
    numbers = traced(config)
    for key, value in numbers.items():
        if key != "seed":
            _check_float32(f"config.{key}", value)
    return {k: np.uint32(v) if k == "seed" else np.float32(v) for k, v in numbers.items()}


def _check_float32(where: str, value: float) -> None:
    size, limits = abs(value), np.finfo(np.float32)
    kept = size == 0 or float(limits.smallest_subnormal) <= size <= float(limits.max)
    require(kept, f"{where}: {value} is out of the range of a 32-bit float, as steps compute it")


def with_numbers(program: Program, config: dict) -> Program:
    """The program of a config that differs from `program`'s only in traced numbers. It shares
    compiled code and everything on the devices.

    Raises:
      BadInput: for a number out of range.
    """
    config = _with_adopted(config)
    assert untraced(config) == untraced(program.config), "the configs differ in more than numbers"
    hypers, values = _hypers(config), traced(config)
    task, optimizer = program.build(values)
    before = traced(program.config)
    differ = {key for key in values if values[key] != before[key]}
    task = task._replace(partition=program.task.partition)
    if all(key == "seed" or key.startswith("optim.") for key in differ):
        # Evaluation uses neither: its randomness comes from the context's key.
        task = task._replace(evaluators=program.task.evaluators)
    return program._replace(
        config=config,
        task=task,
        optimizer=optimizer,
        hypers=mesh.put_replicated(program.layout, hypers) | frozen.of(program.hypers),
    )


def initial_state(program: Program) -> TrainState:
    """The state of step 0: fresh, or initialised as the section `init` says."""
    state = program.create(program.hypers)
    section = program.config["init"]
    if not any(section.values()):
        return state
    fresh = state.params, state.extra
    replicated = jax.tree.map(lambda _: mesh.replicated(program.layout), fresh)
    fresh = jax.device_get(jax.jit(lambda x: x, out_shardings=replicated)(fresh))
    task = program.task
    model = program.config.get("model", {})
    values = call(initialise, section, *fresh, task.pretrained, task.files, model, task_of)
    values = jax.tree.map(mesh.put_like, values, (program.like.params, program.like.extra))
    return program.adopt(program.hypers, *values)


def task_of(folder) -> tuple[dict, Task]:
    """(config, Task without evaluators) of the run in a workdir, from what it keeps there if its
    task can."""
    config = completed(workdir.read_config(folder), sections)
    module = task_module(config["task"])
    sources = module.kept(config, files.absolute(folder)) if hasattr(module, "kept") else None
    sources = module.sources(config) if sources is None else sources
    return config, module.make(config | {"evals": {}}, sources, identity)
