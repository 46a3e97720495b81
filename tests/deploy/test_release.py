"""What makes a release: the workflow as GitHub's schema and a linter see it, its scripts, and that both are of one mind."""

import sys
from pathlib import Path

import yaml
from metrics import ROOT
from tools import run

WORKFLOW = ROOT / ".github/workflows/release.yml"
SCRIPTS = ROOT / "deploy/release"
TOOLS = Path(sys.executable).parent


def test_the_workflow_is_one_and_gives_nothing_away():
    run(str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(WORKFLOW))
    run(str(TOOLS / "zizmor"), "--offline", "--no-progress", str(WORKFLOW))


def test_the_scripts_are_without_the_usual_mistakes():
    scripts = sorted(path for path in SCRIPTS.iterdir())
    assert len(scripts) == 3
    run(str(TOOLS / "shellcheck"), *map(str, scripts))


def test_the_workflow_calls_scripts_that_are_there():
    steps = [step for job in yaml.safe_load(WORKFLOW.read_text())["jobs"].values() for step in job["steps"]]
    called = {word for step in steps for word in step.get("run", "").split() if word.startswith("deploy/")}
    assert called == {"deploy/release/in-manylinux", "deploy/release/try"}
    for script in called:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be executed"


def test_a_package_has_what_the_program_carries():
    """`include` of the manifest: what `include_bytes!` names, and nothing that only the repository needs."""
    listed = run("cargo", "--quiet", "package", "--package", "rewarm", "--list", "--allow-dirty", cwd=ROOT).splitlines()
    carried = {f"deploy/demo/member-{member}/{file}" for member in range(4) for file in (
        "config.json", "model.safetensors", "rewarm.golden.json", "rewarm.json", "tokenizer.json", "tokenizer_config.json")}
    assert carried == {path for path in listed if path.startswith("deploy/")}
    assert {path.split("/")[0] for path in listed if "/" in path} == {"deploy", "proto", "src"}
