"""A server of the demo family and a Prometheus that scrapes it, open or closed: where the runbook's commands are run."""

import json
import random
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from metrics import ROOT
from tools import REWARM, run, tool

TOKENS = {"trainer": ["score"], "prometheus": ["metrics"], "operator": ["score", "metrics", "admin"]}


def free_port() -> int:
    """One that is free, and that no client is given as its own meanwhile: Linux takes those from 32768 on."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def wait(until, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def secret(name: str) -> str:
    return f"the-token-of-{name}-in-a-test"


def certify(folder: Path) -> None:
    """`ca.crt`, and `tls.crt` with `tls.key`, which it signed for this machine."""
    openssl = tool("openssl", "Debian: openssl")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run(openssl, "req", "-x509", *new, "-days", "90", "-subj", "/CN=a test's", "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.crt")
    run(openssl, "req", *new, "-subj", "/CN=rewarm", "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:rewarm\nbasicConstraints=CA:FALSE\n")
    run(openssl, "x509", "-req", "-in", f"{folder}/tls.csr", "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-CAcreateserial",
        "-days", "90", "-extfile", f"{folder}/names", "-out", f"{folder}/tls.crt")


@contextmanager
def place(folder: Path, closed: bool) -> Iterator[dict[str, str]]:
    """The environment of the runbook's commands."""
    prometheus = tool("prometheus", "Debian: prometheus")
    members = json.dumps([str(ROOT / f"deploy/demo/member-{member}") for member in range(2)])
    config, told, port = folder / "rewarm.toml", folder / "addresses.json", free_port()
    config.write_text(f'[variants.warm]\nmode = "warm"\nmembers = {members}\n')
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text().replace("scrape_interval: 5s", "scrape_interval: 1s")
    settings, environment, scheme = [], {"NO_PROXY": "127.0.0.1", "CONFIG": str(config)}, "http"
    if closed:
        certify(folder)
        (folder / "tokens.toml").write_text("".join(
            f"[tokens.{name}]\ntoken = {json.dumps(secret(name))}\nallow = {json.dumps(allow)}\n" for name, allow in TOKENS.items()))
        (folder / "metrics.token").write_text(secret("prometheus"))
        settings = ["--tls-certificate", folder / "tls.crt", "--tls-key", folder / "tls.key", "--tokens", folder / "tokens.toml"]
        scheme = "https"
        # As the comments in the file say.
        text, count = re.subn(r"# (scheme|tls_config|authorization):", r"\1:", text)
        assert count == 3
        # What the runbook says of commands, once for all of them.
        (folder / ".curlrc").write_text(f'cacert = "{folder}/ca.crt"\nheader = "authorization: Bearer {secret("operator")}"\n')
        environment |= {"REWARM_CA": f"{folder}/ca.crt", "REWARM_TOKEN": secret("operator"), "CURL_HOME": str(folder)}
    with ExitStack() as stack:

        def start(*command: object) -> None:
            process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, timeout=60)
            stack.callback(process.terminate)

        start(REWARM, "serve", "--config", config, "--addresses", told, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
              "--metrics", "127.0.0.1:0", *settings)
        wait(told.exists, "the server tells where it listens")
        addresses = json.loads(told.read_text())
        (folder / "prometheus.yml").write_text(text.replace("rewarm:9090", addresses["metrics"]))
        (folder / "rules.yml").write_text((ROOT / "deploy/prometheus/rules.yml").read_text())
        start(prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
              f"--web.listen-address=127.0.0.1:{port}", f"--web.user-assets={ROOT}/deploy/dashboard")

        def has_scraped() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=rewarm_ready==1", timeout=5) as answer:
                    return bool(json.load(answer)["data"]["result"])
            except OSError:
                return False

        wait(has_scraped, "Prometheus scrapes a server that is ready")
        yield environment | {"SERVER": f"{scheme}://{addresses['listen']}", "METRICS": f"{scheme}://{addresses['metrics']}",
                             "PROMETHEUS": f"http://127.0.0.1:{port}"}
