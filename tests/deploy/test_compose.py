"""The compose file: valid for an old docker-compose, closed to other machines, and of one mind with the program."""

import yaml
from metrics import ROOT
from tools import run, tool

FILE = ROOT / "deploy/compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]


def test_docker_compose_understands_it():
    run(tool("docker-compose", "Debian: docker-compose"), "--file", str(FILE), "--profile", "gpu", "--profile", "grafana", "config", "--quiet")


def test_what_is_mounted_is_there():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (FILE.parent / source).exists(), f"{name} mounts {source}"


def test_ports_are_published_on_the_loopback_and_the_admin_port_nowhere():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)
    assert not any("50052" in port for port in ports)


def test_the_server_is_reached_checked_confined_and_drained():
    server = SERVICES["rewarm"]
    assert server["environment"]["REWARM_METRICS"] == "0.0.0.0:9090"
    assert "ENV REWARM_METRICS=0.0.0.0:9090" in (ROOT / "Dockerfile").read_text()
    assert server["healthcheck"]["test"] == ["CMD", "rewarm", "health"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"] and server["security_opt"] == ["no-new-privileges:true"]
    # drain_grace_seconds and drain_seconds, by their defaults in the manual
    manual = (ROOT / "tests/data/help.txt").read_text()
    assert "drain_grace_seconds = 5 " in manual and "drain_seconds = 30 " in manual
    assert int(server["stop_grace_period"].removesuffix("s")) > 5 + 30


def test_prometheus_has_its_rules_and_serves_the_dashboard():
    prometheus = SERVICES["prometheus"]
    assert "--web.user-assets=/etc/prometheus/dashboard" in prometheus["command"]
    assert {"./prometheus/rules.yml:/etc/prometheus/rules.yml:ro", "./dashboard:/etc/prometheus/dashboard:ro"} <= set(prometheus["volumes"])
