"""Alerts and recorded series: they load, they fire, and they ask for what a server has."""

import re

import pytest
import yaml
from metrics import ROOT, problems
from tools import run, tool

FOLDER = ROOT / "deploy/prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
PROMTOOL = ("promtool", "Debian: prometheus")


def test_configuration_and_rules_are_valid():
    run(tool(*PROMTOOL), "check", "config", str(FOLDER / "prometheus.yml"))


def test_every_alert_fires_in_a_made_up_history_and_none_where_all_is_well():
    run(tool(*PROMTOOL), "test", "rules", "rules_test.yml", cwd=FOLDER)
    history = (FOLDER / "rules_test.yml").read_text()
    assert [alert for alert in ALERTS if f'alertname="{alert}"' not in history] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_that_a_server_has(rule):
    assert problems(rule["expr"], RECORDED) == []


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_what_whose_and_how_much(alert):
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert "$value" in notes["description"]
    assert notes["runbook_url"] == f"deploy/RUNBOOK.md#{alert['alert'].lower()}"
    # A label that the expression groups away would be empty in the text.
    kept = set().union(*(re.findall(r"\w+", group) for group in re.findall(r"\bby \(([^)]*)\)", alert["expr"])))
    for label in set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"])):
        recorded = any(name in alert["expr"] for name in RECORDED)
        assert label in kept or not kept or recorded, f"{label} is not kept"


def test_a_misspelt_metric_label_or_value_is_seen():
    assert problems("rate(rewarm_request_total[5m])") == ["no server has rewarm_request_total"]
    assert problems('rewarm_requests_total{status="OK"}') == ["rewarm_requests_total has no label status"]
    assert problems('rewarm_requests_total{code=~"OK|OKAY"}') == ["code of rewarm_requests_total is never OKAY"]
    assert problems("sum by (model) (rewarm_ready)") == ["nothing in it has the label model"]
    assert problems("job:rewarm:none") == ["no rule records job:rewarm:none"]
    assert problems('sum by (job, variant) (rate(rewarm_samples_total{outcome="scored"}[5m]))') == []
