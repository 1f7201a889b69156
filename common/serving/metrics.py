"""What a server tells Prometheus of itself."""

from collections.abc import Callable
from typing import NamedTuple

import prometheus_client

from common.serving.batching import Batcher

LATENCIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics(NamedTuple):
    """Of one server."""

    registry: prometheus_client.CollectorRegistry
    requests: prometheus_client.Counter
    seconds: prometheus_client.Histogram


def metrics_of(batcher: Batcher, pending: Callable[[], int], ready: Callable[[], bool]) -> Metrics:
    """The metrics of a server; those of batches are kept from then on.

    Args:
      batcher: of the server.
      pending: the number of inputs that are not answered yet.
      ready: whether it takes requests.
    """
    registry = prometheus_client.CollectorRegistry()
    counted = prometheus_client.Counter(
        "touchstone_requests", "Requests to /predict.", ["status"], registry=registry
    )
    seconds = prometheus_client.Histogram(
        "touchstone_request_seconds",
        "Time to answer a request to /predict.",
        buckets=LATENCIES,
        registry=registry,
    )
    rows = prometheus_client.Histogram(
        "touchstone_batch_rows", "Rows of a batch.", buckets=batcher.sizes(), registry=registry
    )
    computing = prometheus_client.Histogram(
        "touchstone_batch_seconds",
        "Time to compute a batch.",
        buckets=LATENCIES,
        registry=registry,
    )
    gauges = {
        "touchstone_queue_rows": ("Rows that wait.", batcher.waiting),
        "touchstone_pending_inputs": ("Inputs not answered yet.", pending),
        "touchstone_ready": ("Whether it is ready.", ready),
    }
    for name, (text, function) in gauges.items():
        prometheus_client.Gauge(name, text, registry=registry).set_function(function)
    prometheus_client.ProcessCollector(registry=registry)

    def observe(count: int, duration: float) -> None:
        rows.observe(count)
        computing.observe(duration)

    batcher.observe = observe
    return Metrics(registry, counted, seconds)
