"""The Grafana dashboard shows the metrics that there are, and names no host. Ray and Grafana are not started."""

import ast
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
METRICS = ast.parse((ROOT / "mucs_ray/engine/metrics.py").read_text())  # read, not imported: it imports Ray
SUFFIXES = {"counter": {"_total"}, "gauge": {""}, "histogram": {"_bucket", "_sum", "_count"}}
"""That Ray 2.60 gives to the names of each kind, after the prefix `ray_` (seen in what a node of it exports)."""
OF_RAY = {
    "ray_node_gpus_utilization",
    "ray_object_store_memory",
    "ray_resources",
    "ray_node_mem_total",
    "autoscaler_active_nodes",
    "autoscaler_pending_nodes",
    "autoscaler_recently_failed_nodes",
}
"""Read in Ray 2.60: ray/dashboard/modules/metrics/dashboards/default_dashboard_panels.py and reporter_agent.py."""
GRID_WIDTH = 24


def names() -> tuple[str, ...]:
    """Return NAMES of mucs_ray.engine.metrics."""
    (value,) = [
        node.value
        for node in METRICS.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["NAMES"]
    ]
    return ast.literal_eval(value)


def kinds() -> dict[str, str]:
    """Return, by name, the kind of each metric: counter, gauge or histogram."""
    calls = [node for node in ast.walk(METRICS) if isinstance(node, ast.Call) and node.args]
    kind_of = {}
    for call in calls:
        first = call.args[0]
        if isinstance(first, ast.Constant) and first.value in names():
            kind_of[first.value] = ast.unparse(call.func).split(".")[-1].lower()
    return kind_of


def exported() -> set[str]:
    """Return the names under which Prometheus gets our metrics."""
    return {f"ray_{name}{suffix}" for name, kind in kinds().items() for suffix in SUFFIXES[kind]}


def metrics_in(expression: str) -> set[str]:
    """Return the names of metrics in an expression: those before a brace, and those in a matcher of names."""
    matched = re.findall(r'__name__=~"([^"]*)"', expression)
    return set(re.findall(r"([a-z_]+)\{", expression)) | {name for each in matched for name in each.split("|")}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((ROOT / "cluster/grafana-dashboard.json").read_text())


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_has_a_kind():
    assert len(names()) == 5 and set(kinds()) == set(names())
    assert set(kinds().values()) <= SUFFIXES.keys()


def test_each_panel_has_a_datasource_an_expression_and_words(dashboard: dict[str, Any]):
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        assert panel["datasource"] == chosen and panel["title"] and panel["description"], panel["id"]
        assert panel["targets"], panel["id"]
        for target in panel["targets"]:
            assert target["datasource"] == chosen and target["expr"].strip() and target["legendFormat"], panel["id"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters))


def test_every_metric_is_shown_and_no_other(dashboard: dict[str, Any]):
    shown = {name for expression in expressions(dashboard) for name in metrics_in(expression)}
    ours = {name for name in shown if "mucs_ray" in name}
    assert ours <= exported()
    assert {name for name in names() if any(each.startswith(f"ray_{name}") for each in ours)} == set(names())
    assert shown - ours == OF_RAY
    asked = {name for variable in dashboard["templating"]["list"] if variable["type"] == "query"
             for name in metrics_in(variable["query"]["query"])}  # fmt: skip
    assert {name for name in asked if "mucs_ray" in name} <= exported()


def test_what_is_chosen_at_the_top_is_used_everywhere(dashboard: dict[str, Any]):
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "SessionName": "query", "stage": "query", "window": "interval"}
    for expression in expressions(dashboard):
        for name, filters in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
            assert 'SessionName=~"$SessionName"' in filters, expression
            assert ('stage=~"$stage"' in filters) == ("mucs_ray" in name), expression
        assert set(re.findall(r"\$(\w+)", expression)) <= variables.keys()
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def test_counters_are_summed_after_their_rate(dashboard: dict[str, Any]):
    """A worker that ends takes its counter along, which the rate of a sum would count as a restart."""
    for expression in expressions(dashboard):
        assert "rate(sum" not in expression.replace(" ", "")


def test_it_can_be_found_again_and_belongs_to_nobody(dashboard: dict[str, Any]):
    assert dashboard["uid"] == "mucs-ray" and dashboard["id"] is None
    text = json.dumps(dashboard)
    assert "://" not in text and not re.search(r"\b\d+\.\d+\.\d+\.\d+\b|localhost", text)


def test_panels_have_numbers_and_places_of_their_own(dashboard: dict[str, Any]):
    panels = dashboard["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(numbers) == len(set(numbers)) == 9
    places = [panel["gridPos"] for panel in panels]
    assert all(place["w"] > 0 < place["h"] and 0 <= place["x"] <= GRID_WIDTH - place["w"] for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
