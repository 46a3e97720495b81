"""The panels of our page and of Grafana: one list, whose queries Prometheus understands and a server can answer."""

import json
import re

import pytest
import yaml
from metrics import ROOT, problems
from test_prometheus import PROMTOOL
from tools import run, tool

PANELS = [panel for row in json.loads((ROOT / "deploy/dashboard/panels.json").read_text())["rows"] for panel in row["panels"]]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_metrics_that_a_server_has(panel):
    assert panel["help"]
    for query in panel["queries"]:
        assert problems(query["expr"]) == []
        labels = re.findall(r"{{(\w+)}}", query["legend"]) + panel.get("columns", [])
        kept = set().union(*(re.findall(r"\w+", group) for group in re.findall(r"\bby \(([^)]*)\)", query["expr"])))
        assert [label for label in labels if label not in kept | {"value"} and "ALERTS" not in query["expr"]] == []


def test_prometheus_understands_every_query(tmp_path):
    queries = [query["expr"] for panel in PANELS for query in panel["queries"]]
    filled = [query.replace("$job", "rewarm").replace("$__rate_interval", "1m") for query in queries]
    assert not any(re.search(r"\$[a-z_]", query) for query in filled)
    rules = [{"record": f"panel:{index}", "expr": query} for index, query in enumerate(filled)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(tool(*PROMTOOL), "check", "rules", str(tmp_path / "panels.yml"))


def test_grafana_has_the_same_panels():
    made = run(str(ROOT / "deploy/grafana/generate"))
    assert made == (ROOT / "deploy/grafana/rewarm.json").read_text(), "deploy/grafana/generate > deploy/grafana/rewarm.json"
    panels = [panel for panel in json.loads(made)["panels"] if panel["type"] != "row"]
    assert [panel["title"] for panel in panels] == [panel["title"] for panel in PANELS]
    squares = {(x, y) for panel in panels for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
               for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])}
    assert len(squares) == sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in panels), "panels overlap"


def test_the_page_loads_nothing_from_elsewhere():
    for name in ("index.html", "dashboard.js", "dashboard.css", "plot.js"):
        text = (ROOT / "deploy/dashboard" / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), name
