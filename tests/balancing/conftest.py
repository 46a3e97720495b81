"""The servers that a test's callers reach, by whatever is between."""

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fleet import ROOT, Fleet
from ports import free_port, wait


@pytest.fixture
def fleet(tmp_path):
    servers = Fleet(tmp_path)
    yield servers
    servers.stop()


@pytest.fixture
def apart(tmp_path):
    """Servers in networks of their own, and what pulls the cable of one."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    names = [f"rewarm-{os.getpid()}-{number}" for number in range(3)]
    places = []
    try:
        for number, name in enumerate(names):
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {error}")
            net, ours, theirs = f"10.231.{number}", f"rw{os.getpid()}o{number}"[-15:], f"rw{os.getpid()}t{number}"[-15:]
            ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            ip("address", "add", f"{net}.1/30", "dev", ours)
            ip("link", "set", ours, "up")
            ip("-n", name, "address", "add", f"{net}.2/30", "dev", theirs)
            ip("-n", name, "link", "set", theirs, "up")
            ip("-n", name, "link", "set", "lo", "up")
            places.append((f"{net}.2", ("ip", "netns", "exec", name), theirs))
        servers = Fleet(tmp_path, [place[:2] for place in places])
        yield servers, lambda number: ip("-n", names[number], "link", "set", places[number][2], "down")
        servers.stop()
    finally:
        for number, name in enumerate(names):
            # first the link: a namespace takes its end along only some time after
            subprocess.run(["ip", "link", "delete", f"rw{os.getpid()}o{number}"[-15:]], capture_output=True)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def fleet_behind(request):
    """Whichever servers the test has."""
    return request.getfixturevalue("apart")[0] if "apart" in request.fixturenames else request.getfixturevalue("fleet")


@pytest.fixture
def nginx(fleet_behind, tmp_path):
    """deploy/nginx/nginx.conf before the servers: its ports for gRPC and HTTP."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        (pytest.fail if os.environ.get("REWARM_REQUIRE_OPS") else pytest.skip)("nginx is not installed (Debian: nginx-core)")
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    for number, server in enumerate(fleet_behind.servers):
        text = text.replace(f"rewarm-{number}:50051", f"{server.host}:{server.grpc}").replace(f"rewarm-{number}:8080", f"{server.host}:{server.http}")
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
def envoy(fleet_behind, tmp_path):
    """deploy/envoy/envoy.yaml before the servers: its port for gRPC."""
    text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
    for number, server in enumerate(fleet_behind.servers):
        text = text.replace(f"address: rewarm-{number}, port_value: 50051", f"address: {server.host}, port_value: {server.grpc}")
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
