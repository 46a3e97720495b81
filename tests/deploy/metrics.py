"""The metrics that a server has, and whether a query asks for one that it has not.

`tests/data/metrics.txt` is what a server shows (`tests/contract.rs` holds it to that): names, types, labels, and the values of
labels that are closed sets. Prometheus itself answers a query for a metric or a label that nobody has with nothing, so that a
misspelt alert is silent for ever.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Labels that Prometheus sets, not the server.
TARGET = {"job", "instance", "namespace", "pod", "le", "__name__"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def known() -> dict[str, dict[str, set[str]]]:
    """Series by name, with their labels and these labels' values where they are a closed set (else empty)."""
    series: dict[str, dict[str, set[str]]] = {}
    labels: dict[str, set[str]] = {}
    for line in (ROOT / "tests/data/metrics.txt").read_text().splitlines():
        if not line.startswith(" "):
            name, kind = line.split()
            labels, described = {}, False
            series.update({name + suffix: labels for suffix in SUFFIXES[kind]})
        elif not described:
            described = True
        else:
            label, _, values = line.strip().partition(" = ")
            labels[label] = set(values.split())
    return series | ONLY_WHERE_SET_UP


def problems(query: str, recorded: set[str] = frozenset()) -> list[str]:
    """What `query` names that no server and no recording rule (`recorded`) has."""
    metrics, found = known(), []
    asked: dict[str, set[str]] = {}
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?", re.sub(r'"[^"]*"(?![^{]*\})', "", query)):
        if ":" in name:
            if name not in recorded:
                found.append(f"no rule records {name}")
            continue
        if not re.match(r"rewarm_|process_", name):
            continue
        if name not in metrics:
            found.append(f"no server has {name}")
            continue
        asked[name] = set(metrics[name])
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if label not in metrics[name] | dict.fromkeys(TARGET):
                found.append(f"{name} has no label {label}")
            values = metrics[name].get(label)
            for one in value.split("|") if "~" in operator else [value]:
                if values and one not in values | {""} and re.fullmatch(r"[\w/]+", one):
                    found.append(f"{label} of {name} is never {one}")
    if asked:
        for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
            for label in re.findall(r"\w+", group):
                if label not in TARGET and not any(label in labels for labels in asked.values()) and not recorded & names(query):
                    found.append(f"nothing in it has the label {label}")
    return found


def names(query: str) -> set[str]:
    """Every word of `query` that could be a series."""
    return set(re.findall(r"[a-zA-Z_:][\w:]*", query))


def _agreed(**metrics: str) -> dict[str, dict[str, set[str]]]:
    parsed = {}
    for name, labels in metrics.items():
        pairs = (label.partition("=") for label in labels.split())
        parsed["rewarm_" + name] = {label: set(filter(None, values.split("|"))) for label, _, values in pairs}
    return parsed


# Metrics of what is not there until it is set up, which the golden file does not show: TLS, tokens, a shadow, references.
ONLY_WHERE_SET_UP = _agreed(
    token_requests_total="token code",
    token_samples_total="token",
    token_tokens_in_flight="token",
    token_requests_in_flight="token",
    certificate_expires_timestamp_seconds="",
    shadow_samples_total="variant shadow outcome=scored|dropped|failed",
    shadow_pairs_total="variant shadow agree=true|false",
    shadow_abs_difference_bucket="variant shadow",
    shadow_abs_difference_sum="variant shadow",
    shadow_abs_difference_count="variant shadow",
    shadow_correlation="variant shadow",
    shadow_window_samples="variant shadow",
    window_samples="variant token",
    window_reward_mean="variant token",
    window_reward_std="variant token",
    window_tokens_mean="variant token",
    window_truncated_ratio="variant token",
    window_length_correlation="variant token",
    window_disagreement_mean="variant token",
    reference_reward_mean="variant",
    reference_reward_std="variant",
    reference_tokens_mean="variant",
    reference_length_correlation="variant",
    reference_disagreement_mean="variant",
    drift="variant token statistic=reward|length|truncation|length_correlation|disagreement",
)
