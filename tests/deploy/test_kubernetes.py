"""Manifests as `kubectl apply -k` would send them: valid, closed, and of one mind with the program that they start."""

import re
import tomllib
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from metrics import ROOT, problems
from place import certify
from test_prometheus import PROMTOOL
from tools import REWARM, run, tool

FOLDER = ROOT / "deploy/kubernetes"
RENDERED = ["base", "overlays/cpu", "overlays/gpu", "overlays/canary", "overlays/keda", "overlays/kserve"]
VERSIONS = ["1.32", kubernetes_validate.latest_version()]
OURS = yaml.safe_load((ROOT / "tests/deploy/schemas.yaml").read_text())
each = pytest.mark.parametrize("folder", RENDERED)


@cache
def rendered(folder: str) -> list[dict]:
    return list(yaml.safe_load_all(run(tool("kubectl", "Kubernetes' client"), "kustomize", str(FOLDER / folder))))


def of_kind(folder: str, kind: str) -> list[dict]:
    return [thing for thing in rendered(folder) if thing["kind"] == kind]


def pods(folder: str) -> list[dict]:
    """What runs, as a pod's spec: of a Deployment, and of what KServe puts together of a runtime and a service."""
    found = [thing["spec"]["template"]["spec"] for thing in of_kind(folder, "Deployment")]
    for runtime, service in zip(of_kind(folder, "ServingRuntime"), of_kind(folder, "InferenceService"), strict=True):
        predictor = {key: value for key, value in service["spec"]["predictor"].items() if key not in ("model", "minReplicas", "maxReplicas")}
        found.append(predictor | {key: runtime["spec"][key] for key in ("containers", "volumes")})
    return found


def jobs(folder: str) -> list[dict]:
    """What runs to an end, as a pod's spec."""
    return [thing["spec"]["jobTemplate"]["spec"]["template"]["spec"] for thing in of_kind(folder, "CronJob")]


def configuration(folder: str) -> str:
    [text] = [thing["data"]["rewarm.toml"] for thing in of_kind(folder, "ConfigMap")]
    return text


def valid(thing: dict) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(thing, version, strict=True)


def check(thing: dict) -> None:
    schema = OURS.get(f"{thing['apiVersion']} {thing['kind']}")
    if schema is None:
        return valid(thing)
    assert set(thing) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.Draft202012Validator(schema).validate(thing["spec"])
    # An object of Kubernetes with the same metadata.
    valid({"apiVersion": "v1", "kind": "ConfigMap", "metadata": thing["metadata"]})


@each
def test_every_object_is_what_its_kind_allows(folder):
    things = rendered(folder)
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in things}) == len(things)
    for thing in things:
        check(thing)
    for pod in pods(folder):
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "rewarm"}, "spec": pod})
    for scaled in of_kind(folder, "ScaledObject"):
        valid({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "rewarm"}, "spec": {
            "minReplicas": scaled["spec"]["minReplicaCount"], "maxReplicas": scaled["spec"]["maxReplicaCount"],
            "scaleTargetRef": {"kind": "Deployment"} | scaled["spec"]["scaleTargetRef"],
            "behavior": scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]}})


@pytest.mark.parametrize(("change", "said"), [
    (lambda it: it["spec"]["template"]["spec"]["containers"][0].update(imagePullPolcy="Always"), "imagePullPolcy"),
    (lambda it: it["spec"].update(replicas="two"), "two"),
])
def test_a_mistake_in_a_manifest_is_seen(change, said):
    [deployment] = of_kind("base", "Deployment")
    wrong = yaml.safe_load(yaml.safe_dump(deployment))
    change(wrong)
    with pytest.raises(kubernetes_validate.ValidationError, match=said):
        check(wrong)


@each
def test_a_pod_is_closed(folder):
    for pod in pods(folder) + jobs(folder):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service called rewarm would set REWARM_* variables"
        whole = pod["securityContext"]
        assert whole["runAsNonRoot"] and whole["runAsUser"] == 10001 == whole["fsGroup"]
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True and own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] == container["resources"]["requests"]
            # With a read-only root, what is written has its place.
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
            assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_the_image_runs_as_the_same_user():
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


@each
def test_a_configuration_is_one_that_the_program_takes(folder, tmp_path):
    text = configuration(folder)
    demo = ROOT / "deploy/demo"
    # Where the image, a volume, a storage initializer or the hub puts checkpoints, the demo's are.
    text = re.sub(r'"/opt/rewarm/deploy/demo/', f'"{demo}/', text)
    text = re.sub(r'"/models/(member-\d)"', rf'"{demo}/\1"', text)
    text = re.sub(r'"(/mnt/models|org/reward-model@[0-9a-f]{40})"', f'"{demo}/member-0"', text)
    (tmp_path / "rewarm.toml").write_text(text)
    [pod] = pods(folder)
    settings = {one["name"]: one["value"] for one in pod["containers"][0].get("env", []) if one["name"].startswith("REWARM_")}
    for name, value in settings.items():
        settings[name] = str(tmp_path / Path(value).name) if value.startswith("/") else value
    if "REWARM_TLS_KEY" in settings:
        certify(tmp_path)
        Path(settings["REWARM_TOKENS"]).write_text('[tokens.trainer]\ntoken = "not-a-secret-but-long-enough-for-one"\n')
    said = run(REWARM, "serve", "--check", "--config", str(tmp_path / "rewarm.toml"), "--device", "cpu", env=settings)
    assert folder.split("/")[-1] not in ("cpu", "canary", "keda") or "warning" not in said, "it is closed, and yet"


@each
def test_ports_probes_and_time_to_drain_are_those_of_the_program(folder):
    server = tomllib.loads(configuration(folder))["server"]
    port = {key: int(server[key].rsplit(":", 1)[1]) for key in ("listen", "http", "metrics")}
    assert all(server[key].startswith("0.0.0.0:") for key in port), "a pod's loopback reaches nobody"
    assert server.get("admin", "127.0.0.1:").startswith("127.0.0.1:")
    for pod in pods(folder):
        [container] = pod["containers"]
        opened = {one["name"]: one["containerPort"] for one in container["ports"]}
        settings = {one["name"]: one.get("value") for one in container.get("env", [])}
        admin = {"admin": 50052} if settings.get("REWARM_ADMIN") == "0.0.0.0:50052" else {}
        assert not admin or {"REWARM_TLS_CERTIFICATE", "REWARM_TLS_KEY", "REWARM_TOKENS"} <= settings.keys(), "an open door to reload and drain"
        assert opened in ({"grpc": port["listen"], "http": port["http"], "metrics": port["metrics"]} | admin, {"http1": port["http"]})
        hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = hook + server["drain_grace_seconds"] + server["drain_seconds"]
        assert pod["terminationGracePeriodSeconds"] >= needed + 5
        # Long enough that whoever looks every readiness period, and DNS that is kept for 5 s, have turned away before work is refused.
        ready = container["readinessProbe"]
        assert server["drain_grace_seconds"] >= ready["periodSeconds"] * ready["failureThreshold"] + 5
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            if "grpc" in probe:
                assert probe["grpc"]["port"] == port["listen"]
                wanted = None if kind == "livenessProbe" else "rewarm.v1.RewardService"
                assert probe["grpc"].get("service") == wanted
            else:
                named = {name: number for name, number in opened.items()}
                number = named.get(probe["httpGet"]["port"], probe["httpGet"]["port"])
                alive = kind == "livenessProbe"
                assert (number, probe["httpGet"]["path"]) in (
                    (port["metrics"], "/healthz" if alive else "/readyz"),
                    (port["http"], "/v2/health/live" if alive else "/v2/health/ready"),
                )
        # TLS: the kubelet's gRPC probes do not speak it.
        tls = any(one["name"] == "REWARM_TLS_CERTIFICATE" for one in container.get("env", []))
        assert tls == (container["livenessProbe"].get("httpGet", {}).get("scheme") == "HTTPS")


@pytest.mark.parametrize("folder", [folder for folder in RENDERED if "kserve" not in folder])
def test_services_policy_and_monitor_find_the_pods(folder):
    [deployment] = of_kind(folder, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    opened = {one["name"]: one["containerPort"] for one in container["ports"]}
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(folder, "Service")}
    assert services["rewarm"]["clusterIP"] == "None", "clients balance by request, over what DNS tells"
    [policy] = [policy for policy in of_kind(folder, "NetworkPolicy") if policy["metadata"]["name"] == "rewarm"]
    [budget] = of_kind(folder, "PodDisruptionBudget")
    monitors = of_kind(folder, "PodMonitor")
    selectors = [service["selector"] for service in services.values()] + [
        deployment["spec"]["selector"]["matchLabels"], policy["spec"]["podSelector"]["matchLabels"], budget["spec"]["selector"]["matchLabels"],
        *(monitor["spec"]["selector"]["matchLabels"] for monitor in monitors)]
    for selector in selectors:
        assert selector.items() <= labels.items()
    let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert let_in == set(opened.values()), "the admin port of loopback is let in for nobody"
    assert {port["targetPort"] for service in services.values() for port in service["ports"]} <= set(opened)
    assert all(endpoint["port"] in opened for monitor in monitors for endpoint in monitor["spec"]["podMetricsEndpoints"])


@each
def test_a_changed_configuration_rolls_out(folder):
    [name] = [thing["metadata"]["name"] for thing in of_kind(folder, "ConfigMap")]
    [pod] = pods(folder)
    assert name in [volume.get("configMap", {}).get("name") for volume in pod["volumes"]]
    assert re.search(r"-[0-9a-z]{10}$", name) or "kserve" in folder


def test_alerts_are_those_of_prometheus():
    made = run(str(FOLDER / "rules"))
    assert made == (FOLDER / "components/monitoring/rules.yaml").read_text(), "deploy/kubernetes/rules > .../monitoring/rules.yaml"
    theirs = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    assert yaml.safe_load(made)["spec"] == theirs


def test_the_autoscaler_takes_no_silence_for_idleness(tmp_path):
    [scaled] = of_kind("overlays/keda", "ScaledObject")
    [deployment] = of_kind("overlays/keda", "Deployment")
    assert "replicas" not in deployment["spec"], "each apply would undo what the autoscaler did"
    spec, tests = scaled["spec"], []
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    target = '{namespace="rewarm", job="rewarm/rewarm", instance="%s"%s}'
    busy, lost = ', variant="warm", member="0"', ', variant="warm"'
    for trigger in spec["triggers"]:
        query = trigger["metadata"]["query"]
        assert problems(query) == [] and trigger["metadata"]["ignoreNullValues"] == "false"
        for name, values, expected in [
            ("work waits", ("0+60x10", "20000x10"), {"device": 2.0, "queue": 40000}),
            ("nothing waits", ("0x10", "0x10"), {"device": 0.0, "queue": 0}),
            ("an empty result", None, {}),
            ("NaN", ("NaN " * 10, "NaN " * 10), {}),
        ]:
            kind = "device" if "device_seconds" in query else "queue"
            series = values and [
                {"series": f"rewarm_device_seconds_total{target % (pod, busy)}", "values": values[0]} for pod in "ab"
            ] + [{"series": f"rewarm_queue_tokens{target % (pod, lost)}", "values": values[1]} for pod in "ab"]
            samples = [{"labels": "{}", "value": expected[kind]}] if expected else []
            tests.append({"name": f"{kind}: {name}", "interval": "1m", "input_series": series or [],
                          "promql_expr_test": [{"expr": query, "eval_time": "8m", "exp_samples": samples}]})
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    run(tool(*PROMTOOL), "test", "rules", str(tmp_path / "test.yml"))


def test_a_canary_alone_reaches_the_admin_service_and_what_else_it_asks():
    folder = "overlays/canary"
    [cron], [job], [deployment] = of_kind(folder, "CronJob"), jobs(folder), of_kind(folder, "Deployment")
    assert cron["spec"]["suspend"] is True, "it begins when an operator says so"
    assert cron["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0 and job["restartPolicy"] == "Never"
    labels = cron["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    servers = deployment["spec"]["template"]["metadata"]["labels"]
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(folder, "NetworkPolicy")}
    for service in of_kind(folder, "Service"):
        assert not service["spec"]["selector"].items() <= labels.items(), "a Service would send it requests"
    [rule] = [rule for rule in policies["rewarm"]["ingress"] if 50052 in [port["port"] for port in rule["ports"]]]
    [source], [port] = rule["from"], rule["ports"]
    assert source["podSelector"]["matchLabels"].items() <= labels.items() and source.keys() == {"podSelector"} and port["port"] == 50052
    own = policies["rewarm-canary"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items() and own["ingress"] == []
    [to_admin] = [rule for rule in own["egress"] if rule["ports"] == [port]]
    assert to_admin["to"][0]["podSelector"]["matchLabels"].items() <= servers.items()
    [container] = job["containers"]
    run(REWARM, *container["args"], "--help")
    asked = dict(word.split("=", 1) for word in container["args"] if word.startswith("--"))
    assert asked["--admin"] == "https://rewarm:50052", "the headless Service, by a name that the certificate has"
    scaled = of_kind("overlays/keda", "ScaledObject")[0]["spec"]["triggers"][0]["metadata"]
    assert asked["--prometheus"] == scaled["serverAddress"]
    assert all(matcher in scaled["query"] and matcher in asked["--alert"] for matcher in asked["--matchers"].split(","))
    assert f'variants.{container["args"][1]}]' in configuration(folder)
    held = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    files = {f'{held[volume["name"]]}/{item["path"]}' for volume in job["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
    assert files == {one["value"] for one in container["env"]}, "not the servers' key, nor the tokens of others"


def test_every_folder_is_rendered():
    used = "".join(path.read_text() for path in FOLDER.rglob("kustomization.yaml"))
    assert [path.name for path in (FOLDER / "components").iterdir() if f"components/{path.name}" not in used] == []
    assert {str(path.parent.relative_to(FOLDER)) for path in FOLDER.glob("overlays/*/kustomization.yaml")} | {"base"} == set(RENDERED)
    assert all(Path(FOLDER / folder).is_dir() for folder in RENDERED)
