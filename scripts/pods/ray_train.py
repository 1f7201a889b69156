"""Run a command as one process on each of so many Ray nodes, and again while that helps.

    python scripts/pods/ray_train.py 2 PYTHON TRAIN.PY --config CONFIG.PY --workdir DIR

All paths absolute. Ray itself retries nothing: it would start one process alone, where process 0
may have been before. For GPUs add "GPU": 8 and "num_gpus": 8 below; on the hosts of a TPU slice ask
for "resources": {"TPU": 4}, and leave --coordinator, --processes and --process out.
"""

import subprocess
import sys
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as At


def code(task):
    """The exit code of a process; 6 if Ray's worker, or its host, is gone."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError:
        return 6


ray.init()
address = ray.remote(lambda: ray.util.get_node_ip_address())
start = ray.remote(max_retries=0)(lambda words: subprocess.run(words).returncode)
count, command = int(sys.argv[1]), sys.argv[2:]
for _ in range(20):
    group = placement_group([{"CPU": 1}] * count, strategy="STRICT_SPREAD")  # "GPU": 8
    on = [{"num_cpus": 1, "scheduling_strategy": At(group, i)} for i in range(count)]  # "num_gpus"
    where = ray.get(address.options(**on[0]).remote()) + ":9876"
    told = [*command, "--coordinator", where, "--processes", str(count), "--process"]
    tasks = [start.options(**on[i]).remote([*told, str(i)]) for i in range(count)]
    codes = {code(task) for task in tasks}
    remove_placement_group(group)
    if codes == {0} or codes & {1, 2}:
        break
    time.sleep(10)
sys.exit(max(codes))
