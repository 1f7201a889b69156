"""Keys of `runtime` that come too late for a JAX that runs, as in a notebook."""

import os

import jax
import pytest

from common.devices import runtime


@pytest.fixture(autouse=True)
def running(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert jax.device_count() == 8


def test_devices_of_a_cpu_that_is_divided_otherwise(caplog):
    runtime.start(cpu_devices=8, deterministic=True)
    runtime.start()
    assert not caplog.messages
    runtime.start(cpu_devices=3)
    (message,) = caplog.messages
    assert message.startswith("config.runtime.cpu_devices: 3, but the CPU is 8; JAX, which runs")
    assert "restart Python" in message


def test_deterministic_kernels_of_a_gpu(caplog, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    runtime.start(deterministic=True)
    (message,) = caplog.messages
    assert message.startswith("config.runtime.deterministic: JAX, which runs already")
    assert runtime.DETERMINISTIC in message
    assert os.environ["XLA_FLAGS"] == ""  # a second run is warned as well
    monkeypatch.setenv("XLA_FLAGS", runtime.DETERMINISTIC)
    runtime.start(deterministic=True)
    assert len(caplog.messages) == 1


def test_the_cache_moves_while_jax_runs(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.jit(lambda x: x * 5 + 17)(1.0)
    try:
        runtime.start(cache=str(tmp_path / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.jit(lambda x: x * 3 + 17)(1.0)
        assert list((tmp_path / "cache").iterdir())
    finally:
        runtime.start(cache=before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
