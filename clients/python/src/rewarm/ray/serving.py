"""The same as a Ray Serve application: replicas that Serve places, checks and scales, by the tokens that wait.

# Why do clients call the servers, and not Serve's proxy?

Every request would pass through two Python processes, for a server that answers thousands a second; and the proxy keeps
back what retries go by: it drops a reply's trailers (`grpc-retry-pushback-ms`), has no health service, and turns errors
into INTERNAL with a traceback. So Serve does what it is good at, the number and the place of replicas, and
`rewarm.Client("ray:serve/NAME")` follows them. The application's own page answers with their addresses, for clients
without Ray.
"""
# what Ray's decorators make is not in its types
# pyright: reportAttributeAccessIssue=false, reportFunctionMemberAccess=false
from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from rewarm.errors import InvalidInput
from rewarm.ray.deployment import CALL_SECONDS, LOOK_SECONDS, Reporter, cards, here
from rewarm.ray.directory import Directory
from rewarm.ray.replica import Replica, ReplicaFailed, Spec

#: Where the directory has its name.
NAMESPACE = "serve"
#: What waits in a server's queues, and a look at it that is not the metrics' page is not needed.
QUEUE_TOKENS = "rewarm_queue_tokens"
#: Serve waits for its own requests in such steps before it ends a replica.
WAIT_LOOP_SECONDS = 0.5


def serve_app(
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    name: str = "rewarm",
    num_cpus: float = 1,
    num_gpus: float = 0,
    min_replicas: int = 1,
    max_replicas: int = 4,
    queue_tokens_per_replica: float = 65_536,
    upscale_delay: float = 5.0,
    downscale_delay: float = 600.0,
    device: str | None = None,
    binary: str | os.PathLike[str] | None = None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    start_timeout: float = 600.0,
    patience: float = 60.0,
) -> serve.Application:
    """An application for `ray.serve.run`, whose clients are `rewarm.Client("ray:serve/NAME")`.

    It has as many replicas as hold what waits, with `queue_tokens_per_replica` each, once that has been so for a delay.
    The rest is as for `rewarm.ray.deploy`.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise InvalidInput(f"min_replicas is {min_replicas!r} and max_replicas {max_replicas!r}: 1 <= min <= max")
    if not queue_tokens_per_replica > 0:
        raise InvalidInput(f"queue_tokens_per_replica is {queue_tokens_per_replica!r}, not a number above 0")
    spec = Spec(
        config=config if config is None or isinstance(config, Mapping) else os.path.abspath(config),
        binary=None if binary is None else os.fspath(binary), num_cpus=num_cpus, num_gpus=num_gpus,
        device=cards(num_gpus) if device is None else device, arguments=tuple(arguments),
        environment=dict(environment or {}), start_timeout=start_timeout, patience=patience)
    servers = serve.deployment(ServedReplica).options(
        name="servers",
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=min_replicas, max_replicas=max_replicas,
            # what counts is the mean over the look back, and that is as fresh as the interval
            metrics_interval_s=1.0, look_back_period_s=3.0,
            upscale_delay_s=upscale_delay, downscale_delay_s=downscale_delay,
            policy=AutoscalingPolicy(policy_function=QueueTokens, policy_kwargs={"per_replica": queue_tokens_per_replica})),
        # the server drains in `__del__`, which has what is left of this
        graceful_shutdown_timeout_s=patience + 2 * WAIT_LOOP_SECONDS, graceful_shutdown_wait_loop_s=WAIT_LOOP_SECONDS,
        health_check_period_s=2.0, health_check_timeout_s=30.0,
    )
    ingress = serve.deployment(Ingress).options(name="directory", num_replicas=1, ray_actor_options={"num_cpus": 0})
    return ingress.bind(name, servers.bind(name, spec))


class QueueTokens:
    """How many replicas hold what waits: the policy of the application."""

    def __init__(self, per_replica: float) -> None:
        self._per_replica = per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        waiting = (context.aggregated_metrics or {}).get(QUEUE_TOKENS)
        if not waiting:
            # nothing was told yet
            return context.target_num_replicas, {}
        return max(1, math.ceil(sum(waiting.values()) / self._per_replica)), {}


class Ingress:
    """Owns the directory, which ends with it; its page is the list."""

    def __init__(self, name: str, servers: Any) -> None:
        self._directory = _new_directory(name)

    async def __call__(self, request: Any) -> dict[str, Any]:
        revision, addresses = await self._directory.changed.remote(-1, 0.0)
        return {"revision": revision, "addresses": list(addresses)}


def _new_directory(name: str) -> Any:
    """That of a predecessor, which just ended, may still have the name."""
    deadline = time.monotonic() + CALL_SECONDS
    while True:
        try:
            options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 10_000}
            return ray.remote(Directory).options(**options).remote()
        except ValueError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_SECONDS)


class ServedReplica:
    """A server as Serve sees it."""

    def __init__(self, name: str, spec: Spec) -> None:
        own = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(own, spec, *here(), Reporter(NAMESPACE, name))
        while (said := self._replica.status()).state == "starting":
            time.sleep(LOOK_SECONDS)
        if said.state != "ready":
            raise ReplicaFailed(said.reason, replica=own, node=said.node)

    def __del__(self) -> None:
        if hasattr(self, "_replica"):
            self._replica.stop()

    def check_health(self) -> None:
        """A server that ended is started again here; Serve makes a new replica where that did not help."""
        said = self._replica.status()
        if said.state == "failed":
            raise ReplicaFailed(said.reason, replica=said.replica, node=said.node)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Of all variants together."""
        return {QUEUE_TOKENS: total(self._replica.page("/metrics"), QUEUE_TOKENS)}


def total(page: str, metric: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines()
               if line.startswith((metric + "{", metric + " ")))
