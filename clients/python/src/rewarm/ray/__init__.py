"""Servers on a Ray cluster, started, watched, restarted and scaled, and clients that follow them.

    with rewarm.ray.deploy("rewarm.toml", replicas=4, num_gpus=1) as deployment:
        client = deployment.client(variant="warm")        # goes into tasks and actors, as `deployment.address` does
        rewards = client.score(prompts, responses)

Each server is a direct child of an actor (`replica`), which has the CPUs and GPUs of one bundle of a placement group
(`deployment`). Replicas tell one small actor, the directory, where they listen and how they are; clients ask it and get a
new list when it changes. Rewards never pass through Ray: a client speaks gRPC with the servers.

`serve_app` is the same as a Ray Serve application, scaled by what waits in the servers' queues. Needs `ray` 2.52 or later,
which the client itself does not.
"""
try:
    import ray as _ray  # noqa: F401
except ImportError as error:
    raise ImportError(f"rewarm.ray, and addresses that begin with `ray:`, need Ray: pip install ray ({error})") from error

from rewarm.ray.deployment import Deployment, deploy
from rewarm.ray.directory import Report
from rewarm.ray.replica import ReplicaFailed
from rewarm.ray.serving import QueueTokens, serve_app

__all__ = ["Deployment", "QueueTokens", "ReplicaFailed", "Report", "deploy", "serve_app"]
