"""Eight simulated devices, a compilation cache for the session, and skips that CI does not
accept."""

import importlib.util
import os

os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"
# Of the processes that tests start, too: most of their programs compile in less than jax's default.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

from common.devices import ending, runtime
from common.training import program, train

# NVIDIA's compiler has an environment of its own: without a GPU its plugin complains in every
# program.
collect_ignore = [] if importlib.util.find_spec("jax_cuda12_plugin") else ["test_h100.py"]


# These processes do all kinds of things one after the other, and would keep the memory of each.
runtime._allocator = lambda *setting: None
# On a machine that is busy anything may take long; here only what is tested may say so.
ending.SILENCE_SECONDS = 1e9


def pytest_addoption(parser):
    parser.addoption("--update-goldens", action="store_true", help="write tests/goldens anew")
    parser.addoption(
        "--measure", default="", help="the tests of this measure alone, see measure.py"
    )


def pytest_collection_modifyitems(config, items):
    """Tests of a measure (tests/measure.py) run when it is asked for, and at no other time."""
    name, kept, left = config.getoption("--measure"), [], []
    for item in items:
        marks = [mark.args[0] for mark in item.iter_markers("measure")]
        (kept if (name in marks if name else not marks) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that are the same are compiled once a session, in subprocesses as well."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = str(shared / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiling is most of a fast test's time, so XLA takes its short way there; slow tests, laws,
    which are about bits, and scripts are compiled as users' programs are."""
    as_users = item.get_closest_marker("slow") or "laws" in item.path.parts
    jax.config.update("jax_disable_most_optimizations", not as_users)


@pytest.fixture(scope="module")
def same_programs():
    """Runs of this process share the program of a config: it is traced and compiled once. For
    modules about what is around the program, whose configs name the same data throughout."""
    made = {}

    def prepare(config):
        key = repr(config)
        if key not in made:
            if len(made) == 8:  # of a module that tries many
                del made[next(iter(made))]
            made[key] = program.prepare(config)
        made[key] = made.pop(key)  # the latest is last
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "prepare", prepare)
        yield


@pytest.fixture
def compiled_in_haste():
    """Spares XLA's code generator its pains in a slow test, where compiling is what takes time; a
    program is divided over devices as ever."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With CI=true, a test that skips has failed: data and extras must be there."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI accepts no skip: {report.longrepr}"
