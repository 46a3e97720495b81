"""Servers of the demo family and a Prometheus that scrapes them, open or closed: where the runbook's commands and a canary are run."""

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from metrics import ROOT
from tools import REWARM, run, tool

sys.path.append(str(ROOT / "tests/support"))
from ports import free_port, wait  # noqa: E402

TOKENS = {"trainer": ["score"], "prometheus": ["metrics"], "operator": ["score", "metrics", "admin"]}


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


@dataclass
class Server:
    """A process that can be started again where it was."""

    settings: list[object]
    addresses: dict[str, str] = field(default_factory=lambda: {door: f"127.0.0.1:{free_port()}" for door in ("listen", "http", "admin", "metrics")})
    process: subprocess.Popen | None = None

    def start(self) -> None:
        doors = [word for door, address in self.addresses.items() for word in (f"--{door}", address)]
        self.process = subprocess.Popen([REWARM, "serve", *doors, *map(str, self.settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Place:
    """What runs there."""

    servers: list[Server]
    prometheus: str
    # What the runbook's commands go by.
    environment: dict[str, str]

    def query(self, query: str) -> list[dict]:
        """The series that Prometheus finds; none while it does not answer."""
        asked = urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?{asked}", timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []


@contextmanager
def place(folder: Path, closed: bool, servers: int = 1) -> Iterator[Place]:
    """Both variants are loaded, and `warm` has the traffic."""
    prometheus = tool("prometheus", "Debian: prometheus")
    members = json.dumps([str(ROOT / f"deploy/demo/member-{member}") for member in range(2)])
    config, port = folder / "rewarm.toml", free_port()
    config.write_text("[server]\ndrain_grace_seconds = 0\n[routing]\nweights = { warm = 1 }\n" + "".join(
        f'[variants.{mode}]\nmode = "{mode}"\nmembers = {members}\n' for mode in ("warm", "ens")))
    text = (ROOT / "deploy/prometheus/prometheus.yml").read_text().replace("scrape_interval: 5s", "scrape_interval: 1s")
    settings, environment, scheme = ["--config", config], {"NO_PROXY": "127.0.0.1", "CONFIG": str(config)}, "http"
    if closed:
        certify(folder)
        (folder / "tokens.toml").write_text("".join(
            f"[tokens.{name}]\ntoken = {json.dumps(secret(name))}\nallow = {json.dumps(allow)}\n" for name, allow in TOKENS.items()))
        (folder / "metrics.token").write_text(secret("prometheus"))
        settings += ["--tls-certificate", folder / "tls.crt", "--tls-key", folder / "tls.key", "--tokens", folder / "tokens.toml"]
        scheme = "https"
        # As the comments in the file say.
        text, count = re.subn(r"# (scheme|tls_config|authorization):", r"\1:", text)
        assert count == 3
        # What the runbook says of commands, once for all of them.
        (folder / ".curlrc").write_text(f'cacert = "{folder}/ca.crt"\nheader = "authorization: Bearer {secret("operator")}"\n')
        environment |= {"REWARM_CA": f"{folder}/ca.crt", "REWARM_TOKEN": secret("operator"), "CURL_HOME": str(folder)}
    with ExitStack() as stack:
        started = [Server(settings) for _ in range(servers)]
        for server in started:
            server.start()
            stack.callback(server.end)
        targets = '", "'.join(server.addresses["metrics"] for server in started)
        (folder / "prometheus.yml").write_text(text.replace("rewarm:9090", targets))
        (folder / "rules.yml").write_text((ROOT / "deploy/prometheus/rules.yml").read_text())
        process = subprocess.Popen([prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                                    f"--web.listen-address=127.0.0.1:{port}", f"--web.user-assets={ROOT}/deploy/dashboard"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait, timeout=60)
        stack.callback(process.terminate)
        first = {name: f"{scheme}://{address}" for name, address in started[0].addresses.items()}
        environment |= {"SERVER": first["listen"], "METRICS": first["metrics"], "PROMETHEUS": f"http://127.0.0.1:{port}",
                        "ADMIN": started[0].addresses["admin"]}
        here = Place(started, environment["PROMETHEUS"], environment)
        wait(lambda: len(here.query("rewarm_ready == 1")) == servers, "Prometheus scrapes servers that are ready")
        yield here
