"""The servers that a test's callers reach, by whatever is between."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fleet import ROOT, Fleet, free_port, wait


@pytest.fixture
def fleet(tmp_path):
    servers = Fleet(tmp_path)
    yield servers
    servers.stop()


@pytest.fixture
def nginx(fleet, tmp_path):
    """deploy/nginx/nginx.conf before the servers: its ports for gRPC and HTTP."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("REWARM_REQUIRE_OPS") else pytest.skip)("nginx is not installed (Debian: nginx-core)")
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    for number, server in enumerate(fleet.servers):
        text = text.replace(f"rewarm-{number}:50051", f"127.0.0.1:{server.grpc}").replace(f"rewarm-{number}:8080", f"127.0.0.1:{server.http}")
    ports = free_port(), free_port()
    text = text.replace("listen 50051", f"listen 127.0.0.1:{ports[0]}").replace("listen 8080", f"listen 127.0.0.1:{ports[1]}")
    text = text.replace("/run/nginx.pid", f"{tmp_path}/pid").replace("/var/log/nginx", str(tmp_path))
    kept = "".join(f"  {kind}_temp_path {tmp_path};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(text.replace("http {\n", "http {\n" + kept, 1))
    process = subprocess.Popen([program, "-c", tmp_path / "nginx.conf", "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    wait((tmp_path / "pid").exists, "nginx starts")
    yield ports
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def envoy(fleet, tmp_path):
    """deploy/envoy/envoy.yaml before the servers: its port for gRPC."""
    text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
    for number, server in enumerate(fleet.servers):
        text = text.replace(f"address: rewarm-{number}, port_value: 50051", f"address: 127.0.0.1, port_value: {server.grpc}")
    port, admin = free_port(), free_port()
    text = text.replace("address: 0.0.0.0, port_value: 50051", f"address: 127.0.0.1, port_value: {port}").replace("port_value: 9901", f"port_value: {admin}")
    (tmp_path / "envoy.yaml").write_text(text)
    process = subprocess.Popen([Path(sys.executable).parent / "envoy", "-c", tmp_path / "envoy.yaml", "--concurrency", "1", "--log-level", "error",
                                "--disable-hot-restart"], stdout=subprocess.DEVNULL, stderr=open(tmp_path / "envoy.log", "w"))

    def serves() -> bool:
        assert process.poll() is None, (tmp_path / "envoy.log").read_text()
        try:
            clusters = urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5).read().decode()
        except OSError:
            return False
        return clusters.count("health_flags::healthy") == 3

    wait(serves, "envoy finds three healthy servers")
    yield port
    process.terminate()
    process.wait(timeout=30)
