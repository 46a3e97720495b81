"""`rewarm.ray` on a cluster of several nodes on this machine: servers are killed, added and removed under load.

Each call must have the rewards of one server that nobody touched, to the bit, in the order of the samples.
"""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = str(ROOT / "clients/python/src")
sys.path.insert(0, SOURCES)
# workers are children of what is started here
os.environ["PYTHONPATH"] = SOURCES
os.environ.setdefault("REWARM_BINARY", str(ROOT / "target/debug/rewarm"))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_memory_monitor_refresh_ms"] = "0"
# workers, and so servers, are as urgent as the rest of this machine
os.environ["RAY_worker_niceness"] = "0"
# nodes are on loopback; Ray has no option for the head's
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pytest  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

import rewarm  # noqa: E402
import rewarm.pipeline  # noqa: E402
import rewarm.ray  # noqa: E402

MEMBERS = [str(ROOT / f"deploy/demo/member-{i}") for i in range(4)]
CONFIG = {"variants": {"warm": {"mode": "warm", "members": MEMBERS}}}
PROMPT = "What happened today?"
RESPONSES = [f"I found {i} perfect shells, and then {['lost', 'sold', 'ate'][i % 3]} {i * 7 % 31} of them." for i in range(600)]
#: How long anything may take here that is not told to take longer.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def cluster():
    node = {"num_cpus": 2, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 1})
    for _ in range(3):
        cluster.add_node(**node)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="tests", logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def expected():
    with rewarm.serve(CONFIG) as server, rewarm.Client(server.address) as client:
        return client.score(PROMPT, RESPONSES)


class Load:
    """Calls without a pause from tasks and from threads of this process; each must have the expected rewards."""

    def __init__(self, deployment, expected, tasks=1, threads=2):
        self.expected, self.calls, self.wrong = expected, 0, []
        self._client = deployment.client(timeout=PATIENCE)
        self._end = threading.Event()
        self._answers, self._twice = set(), []
        self._tasks = [_score_until.remote(self._client, expected, deployment.name + "/end") for _ in range(tasks)]
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        answered = self._original = rewarm.pipeline.Pipeline.answered

        def watched(pipeline, sending, response):
            if pipeline.responses[sending.index] is not None:
                self._twice.append(sending)
            answered(pipeline, sending, response)

        rewarm.pipeline.Pipeline.answered = watched
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        # its handle keeps it: a named actor ends with the last one
        over = _End.options(name="over", num_cpus=0).remote()
        for thread in self._threads:
            thread.join()
        rewarm.pipeline.Pipeline.answered = self._original
        self.of_tasks = ray.get(self._tasks, timeout=2 * PATIENCE)
        ray.kill(over)
        assert not self.wrong and not self._twice, (self.wrong, self._twice)

    def wait(self, more=3):
        """Until so many more calls have been answered."""
        before, end = self.calls, time.monotonic() + PATIENCE
        while self.calls < before + more:
            assert time.monotonic() < end and not self.wrong, self.wrong
            time.sleep(0.02)

    def _run(self):
        while not self._end.is_set() and not self.wrong:
            try:
                if self._client.score(PROMPT, RESPONSES) != self.expected:
                    self.wrong.append("rewards differ")
            except Exception as error:
                self.wrong.append(error)
            self.calls += 1


@ray.remote
class _End:
    pass


@ray.remote(num_cpus=0)
def _score_until(client, expected, _):
    calls = 0
    while True:
        assert client.score(PROMPT, RESPONSES) == expected
        calls += 1
        with contextlib.suppress(ValueError):
            ray.get_actor("over")
            return calls


def wait_for(what, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ready(deployment):
    return {said.replica: said for said in deployment.status() if said.state == "ready"}


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_replicas_that_are_killed_added_and_removed_under_load(cluster, expected, capsys):
    with rewarm.ray.deploy(CONFIG, 2, num_cpus=1, patience=20) as deployment:
        first = ready(deployment)
        assert sorted(first) == ["0", "1"] and len({said.node for said in first.values()}) == 2, "a node for each"
        with Load(deployment, expected) as load:
            load.wait()
            revision, addresses = deployment.addresses()
            # the server
            os.kill(first["0"].pid, signal.SIGKILL)
            second = wait_for(lambda: (now := ready(deployment)).get("0", first["0"]).start != first["0"].start and now)
            assert "SIGKILL" in second["0"].reason and second["0"].restarts == 1
            load.wait()
            later, others = deployment.addresses()
            assert later > revision and len(others) == 2 and set(others) != set(addresses)
            # the actor: its server drains, and ends
            os.kill(parent(second["1"].pid), signal.SIGKILL)
            wait_for(lambda: not is_running(second["1"].pid), 10)
            third = wait_for(lambda: (now := ready(deployment)).get("1", second["1"]).life != second["1"].life and now)
            load.wait()
            deployment.scale(4)
            fourth = ready(deployment)
            assert sorted(fourth) == ["0", "1", "2", "3"]
            load.wait(6)
            deployment.scale(1)
            assert [said.replica for said in deployment.status()] == ["0"] and len(deployment.addresses()[1]) == 1
            assert not any(is_running(said.pid) for replica, said in fourth.items() if replica != "0")
            load.wait()
            # back in a bundle that was left, and the directory itself
            ray.kill(ray.get_actor(deployment.name), no_restart=False)
            load.wait()
            wait_for(lambda: list(ready(deployment)) == ["0"])
            deployment.scale(2)
            load.wait()
            last = ready(deployment)
    assert not any(is_running(said.pid) for said in last.values()), "they have ended"
    assert third["1"].address not in others
    with capsys.disabled():
        samples = (load.calls + sum(load.of_tasks)) * len(RESPONSES)
        print(f"\n{load.calls} calls of threads and {load.of_tasks} of tasks: {samples} samples, none lost")
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_the_readmes_example(cluster, expected, tmp_path):
    """As it stands there, in a process of its own, with a file of that name beside it."""
    readme = (ROOT / "clients/python/README.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```py\n(.*?)```", readme, re.S) if "rewarm.ray.deploy" in code]
    (tmp_path / "rewarm.toml").write_text(f"[variants.warm]\nmode = 'warm'\nmembers = {json.dumps(MEMBERS)}\n", encoding="utf-8")
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    better, worse = json.loads(re.search(r"^\[.*\d\]$", done.stdout, re.M)[0])
    assert better > worse and done.stdout.count("state='ready'") == 3, done.stdout


TOKEN, WATCHER = "the-token-of-a-trainer-on-ray", "the-token-of-its-metrics"


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A configuration with TLS and tokens, and who signed its certificate."""
    folder = tmp_path_factory.mktemp("closed")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    (folder / "names").write_text("subjectAltName=DNS:rewarm\nbasicConstraints=CA:FALSE\n")
    for command in [
        ["req", "-x509", *new, "-days", "9", "-subj", "/CN=a test's", "-keyout", "ca.key", "-out", "ca.crt"],
        ["req", *new, "-subj", "/CN=rewarm", "-keyout", "tls.key", "-out", "tls.csr"],
        ["x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9", "-extfile", "names",
         "-out", "tls.crt"],
    ]:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    (folder / "tokens.toml").write_text(f"[tokens.trainer]\ntoken = '{TOKEN}'\n[tokens.watcher]\ntoken = '{WATCHER}'\nallow = ['metrics']\n")
    tls = {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")}
    return {**CONFIG, "server": {"tls": tls, "tokens": str(folder / "tokens.toml")}}, str(folder / "ca.crt")


@ray.remote(num_cpus=0)
def _score(client):
    return client.score(PROMPT, RESPONSES[:20])


def test_servers_with_tls_and_tokens(cluster, expected, closed):
    config, ca = closed
    access = {"ca": ca, "server_name": "rewarm"}
    with rewarm.ray.deploy(config, 2, num_cpus=1) as deployment:
        client = deployment.client(token=TOKEN, timeout=PATIENCE, **access)
        assert client.score(PROMPT, RESPONSES) == expected
        # into a task, with what it shows; or with nothing, which is then of the worker's environment
        assert ray.get(_score.remote(client)) == expected[:20]
        variables = {"REWARM_TOKEN": TOKEN, "REWARM_CA": ca, "REWARM_SERVER_NAME": "rewarm"}
        task = _score.options(runtime_env={"env_vars": variables})
        assert ray.get(task.remote(deployment.client(timeout=PATIENCE))) == expected[:20]
        for options, said in [({}, "token"), ({"token": "another-one-of-a-stranger"}, "token")]:
            with pytest.raises(rewarm.AccessDenied, match=said) as caught:
                deployment.client(timeout=PATIENCE, **access, **options).score(PROMPT, ["one"])
            assert "stranger" not in str(caught.value)
        with pytest.raises(rewarm.AccessDenied, match="TLS"):
            deployment.client(token=TOKEN, timeout=PATIENCE).score(PROMPT, ["one"])
        # a server that is started anew is closed, too, and found
        before = ready(deployment)
        os.kill(before["0"].pid, signal.SIGKILL)
        wait_for(lambda: ready(deployment).get("0", before["0"]).start != before["0"].start)
        assert client.score(PROMPT, RESPONSES) == expected


def test_what_waits_is_read_from_a_closed_server(closed):
    """As Serve's replicas do, which are scaled by it: with a token for metrics among the server's variables."""
    from rewarm.ray.replica import Replica, Spec
    from rewarm.ray.serving import QUEUE_TOKENS

    pages = {}
    for token in [WATCHER, ""]:
        replica = Replica("0", Spec(config=closed[0], environment={"REWARM_TOKEN": token}), "127.0.0.1", "a node", lambda report: True)
        try:
            wait_for(lambda: replica.status().state == "ready")
            pages[token] = replica.page("/metrics")
        finally:
            replica.stop()
    assert QUEUE_TOKENS in pages[WATCHER] and QUEUE_TOKENS not in pages[""]


def test_the_only_replica_is_killed_and_calls_wait_for_the_next(cluster, expected):
    with rewarm.ray.deploy(CONFIG, num_cpus=1) as deployment, Load(deployment, expected, tasks=1) as load:
        for _ in range(2):
            load.wait()
            os.kill(next(iter(ready(deployment).values())).pid, signal.SIGKILL)
        load.wait()


def test_a_configuration_that_is_bad_is_told_at_once(cluster):
    begun = time.monotonic()
    with pytest.raises(rewarm.ray.ReplicaFailed, match=r"(?s)replica \d on node .*no/such/model") as caught:
        rewarm.ray.deploy({"variants": {"warm": {"mode": "warm", "model": "/no/such/model"}}}, 2)
    assert time.monotonic() - begun < 30 and caught.value.node and caught.value.replica in "01"
    with pytest.raises(rewarm.RewarmError, match="no room for 1 replicas with {'CPU': 64"):
        rewarm.ray.deploy(CONFIG, num_cpus=64, start_timeout=1)
    with pytest.raises(rewarm.InvalidInput, match="both 0"):
        rewarm.ray.deploy(CONFIG, num_cpus=0)
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@ray.remote(num_cpus=0)
def _fail(kind, address):
    if kind == "samples":
        rewarm.Client(address).score_token_ids([[1, 2], [999_999]])
    if kind == "input":
        rewarm.Client(address).score(PROMPT, [3])
    if kind == "variant":
        rewarm.Client(address).score(PROMPT, ["one"], variant="none")
    rewarm.Client("127.0.0.1:1", timeout=0.3).info()


def test_errors_keep_their_fields_through_ray(cluster):
    with rewarm.ray.deploy(CONFIG, num_cpus=1) as deployment:
        for kind, error, fields in [
            ("samples", rewarm.SamplesFailed, lambda error: error.failures[0].index == 1
             and error.failures[0].code == "INVALID_ARGUMENT" and error.scores[0].reward),
            ("input", rewarm.InvalidInput, lambda error: error.index == 0),
            ("variant", rewarm.InvalidRequest, lambda error: error.code == "INVALID_ARGUMENT" and "variant" in error.message),
            ("absent", rewarm.Unavailable, lambda error: error.code == "UNAVAILABLE" and error.attempts > 1),
        ]:
            with pytest.raises(error) as caught:
                ray.get(_fail.remote(kind, deployment.address))
            assert fields(caught.value), kind
            assert fields(caught.value.cause) and isinstance(caught.value.cause, error), kind
        # clients of both kinds
        assert pickle.loads(pickle.dumps(deployment.client(variant="warm"))).score(PROMPT, ["one"])
        async_client = rewarm.AsyncClient(deployment.address)
        assert ray.get(_ask.remote(async_client)) == deployment.client().score(PROMPT, ["one", "two"])


@ray.remote(num_cpus=0)
def _ask(client):
    import asyncio
    return asyncio.run(client.score(PROMPT, ["one", "two"]))


DRIVER = """
import os, signal, sys, ray, rewarm.ray
ray.init(address=sys.argv[1], logging_level="ERROR")
deployment = rewarm.ray.deploy({config!r}, 2)
print(*(said.pid for said in deployment.status()), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "sys.exit(0)", "ray.shutdown()",
                                 "1/0"])
def test_a_driver_that_ends_leaves_no_server(cluster, end):
    script = DRIVER.format(config=CONFIG, end=end)
    done = subprocess.run([sys.executable, "-c", script, cluster.address], capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    wait_for(lambda: not any(map(is_running, pids)), 30)


def test_a_serve_application_grows_with_what_waits(cluster, expected, capsys):
    from ray import serve

    app = rewarm.ray.serve_app(CONFIG, num_cpus=1, max_replicas=3, queue_tokens_per_replica=1000, upscale_delay=1.0,
                               downscale_delay=3.0, patience=20)
    serve.start(http_options={"host": "127.0.0.1", "port": 23_010})
    serve.run(app, name="rewards")

    def servers():
        with urllib.request.urlopen("http://127.0.0.1:23010/", timeout=10) as answer:
            return json.load(answer)["addresses"]

    try:
        begun = time.monotonic()
        wait_for(lambda: len(servers()) == 1)
        client = rewarm.Client("ray:serve/rewarm", timeout=2 * PATIENCE)
        assert client.score(PROMPT, RESPONSES) == expected
        ended, wrong = threading.Event(), []

        def run():
            while not ended.is_set():
                if client.score(PROMPT, RESPONSES) != expected:
                    wrong.append(1)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            begun = time.monotonic()
            wait_for(lambda: len(servers()) > 1)
            grown = time.monotonic() - begun
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        # and shrinks while nothing waits
        begun = time.monotonic()
        wait_for(lambda: len(servers()) == 1, 2 * PATIENCE)
        shrunk = time.monotonic() - begun
        assert not wrong and client.score(PROMPT, RESPONSES) == expected
        with capsys.disabled():
            print(f"\na second replica took load after {grown:.1f} s; one was left {shrunk:.1f} s after the load")
    finally:
        serve.shutdown()
