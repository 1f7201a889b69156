"""How a process finds out whether it is one of several; what real processes do is in tests/laws."""

import http.server
import threading

import jax
import pytest

from common import cli
from common.devices import processes
from common.errors import BadInput

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
SAID = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


def without(env: dict, *names: str) -> dict:
    return {key: value for key, value in env.items() if key not in names}


@pytest.mark.parametrize(
    "env",
    [
        {},
        SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation of two tasks
        without(SLURM, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),  # a batch script, no srun
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a pod of its own, a notebook say
        {"TPU_WORKER_HOSTNAMES": "a,b"},  # and no TPU for jax
        {"JAX_NUM_PROCESSES": "1"},
        SLURM | POD | {"JAX_NUM_PROCESSES": "1"},  # said is said
    ],
)
def test_alone(env):
    assert processes.places(env) is None


def test_what_is_said_comes_first():
    all_said = {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    assert processes.places(SAID) == all_said
    assert processes.places(SAID | SLURM | POD) == all_said


def test_launchers_are_found_by_jax():
    assert processes.places(SLURM) == {"cluster_detection_method": "slurm"}
    older = without(SLURM, "SLURM_STEP_NUM_TASKS")
    assert processes.places(older) == {"cluster_detection_method": "slurm"}
    assert processes.places(OMPI) == {"cluster_detection_method": "ompi"}
    port = {"JAX_COORDINATOR_ADDRESS": "node001:5"}
    assert processes.places(SLURM | port) == {
        "cluster_detection_method": "slurm",
        "coordinator_address": "node001:5",
    }


def test_pods_of_an_indexed_job_are_found_by_jax(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="jax\\[k8s\\]"):
        processes.places(POD)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    assert processes.places(POD) == {}


@pytest.mark.parametrize(
    ("env", "whole"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, False),
        ({"CUDA_VISIBLE_DEVICES": "3"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
    ],
)
def test_a_process_that_is_alone_on_its_host_has_all_gpus(env, whole):
    found = processes.places(SLURM | env)
    assert ("local_device_ids" in found) == whole
    assert not found.get("local_device_ids")  # none picked: all


@pytest.fixture
def on_tpu():
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")  # as jax does on a TPU VM; nothing is started
    yield
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("env", "several"),
    [
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_tpu_hosts_of_kubernetes(on_tpu, env, several):
    assert processes.places(env) == ({} if several else None)


@pytest.mark.parametrize(
    ("told", "several"),
    [
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.2"}, False),
        ({"worker-network-endpoints": "a:b:10.0.0.2,c:d:10.0.0.3"}, True),
        ({"worker-network-endpoints": "h0", "tpu-env": "A: 'x'\nMEGASCALE_NUM_SLICES: '2'"}, True),
        ({}, False),
    ],
)
def test_tpu_vms_ask_what_they_are(on_tpu, monkeypatch, told, several):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = told.get(self.path.rpartition("/")[2])
            asked = self.headers["Metadata-Flavor"] == "Google" and text is not None
            self.send_response(200 if asked else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"localhost:{server.server_port}")
        assert processes.places({}) == ({} if several else None)
        server.shutdown()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (without(SAID, "JAX_PROCESS_ID"), "each needs .*got only coordinator_address=host:1234"),
        (without(SAID, "JAX_NUM_PROCESSES"), "each needs"),
        (without(SAID, "JAX_COORDINATOR_ADDRESS"), "each needs"),
        (SAID | {"JAX_PROCESS_ID": "4"}, "process: 0 to 3, got 4"),
        (SAID | {"JAX_PROCESS_ID": "-1"}, "process: a whole number, got '-1'"),
        (SAID | {"JAX_NUM_PROCESSES": "0"}, "processes: at least 1, got 0"),
        (SAID | {"JAX_NUM_PROCESSES": "two"}, "processes: a whole number, got 'two'"),
        (SAID | {"JAX_COORDINATOR_ADDRESS": "host"}, "'host'; write HOST:PORT"),
        (SAID | {"JAX_COORDINATOR_ADDRESS": "host:99999"}, "write HOST:PORT"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "--coordinator HOST:PORT"),
    ],
)
def test_settings_that_make_no_sense_are_refused(env, said):
    with pytest.raises(BadInput, match=said):
        processes.places(env)


def test_flags_are_settings(monkeypatch):
    for name in cli.PLACE.values():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    parser = cli.parser("A script.")
    cli.add_config(parser)
    cli.add_place(parser)
    flags = "--config", "configs/vision/digits.py", "--coordinator", "host:1234"
    cli.parse(parser, [*flags, "--processes", "4", "--process", "3"])
    assert {name: processes.os.environ[name] for name in cli.PLACE.values()} == SAID
