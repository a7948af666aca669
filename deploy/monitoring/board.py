"""
Makes grafana.json, the Grafana board of pars: python deploy/monitoring/board.py

Import it in Grafana (Dashboards, New, Import); it asks for a Prometheus data source.
"""

import json
from pathlib import Path
from typing import Any

BOARD = Path(__file__).with_name("grafana.json")
SCOPE = 'job=~"$job", instance=~"$instance"'
WINDOW = "$__rate_interval"


def quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    rates = f"sum by ({labels}) (rate({metric}_bucket{{{SCOPE}}}[{WINDOW}]))"
    return f"histogram_quantile({q}, {rates})"


def mean(metric: str) -> str:
    return (
        f"sum(rate({metric}_sum{{{SCOPE}}}[{WINDOW}]))"
        f" / sum(rate({metric}_count{{{SCOPE}}}[{WINDOW}]))"
    )


def rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{SCOPE}}}[{WINDOW}]))"


def gauge(metric: str) -> str:
    return f"{metric}{{{SCOPE}}}"


# Title, unit, what it says, and (query, legend) for each line; two panels a row.
PANELS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (
        "What the order is worth, last hour",
        "percentunit",
        "By how much the mean time per output token, and the mean wait, are shorter than first"
        " come, first served would have made them. Below 0 the order does harm.",
        [(gauge("pars_gain_ratio"), "time per token"), (gauge("pars_wait_gain_ratio"), "wait")],
    ),
    (
        "Who waits now",
        "short",
        "Requests that the engine has not begun to answer. Without a queue no order can help.",
        [
            (gauge("pars_requests_waiting"), "waiting"),
            (gauge("pars_held_requests"), "of these held in the gateway"),
            (gauge("pars_engine_slots"), "slots of the engine"),
        ],
    ),
    (
        "Wait by class",
        "s",
        "Express requests go first, ordinary ones are first come, first served.",
        [
            (quantile(0.5, "pars_wait_seconds", "class"), "p50 {{class}}"),
            (quantile(0.99, "pars_wait_seconds", "class"), "p99 {{class}}"),
            (gauge("pars_longest_waiting_seconds"), "longest, now"),
        ],
    ),
    (
        "Time per output token by expected length",
        "s",
        "End to end, with the wait: what short answers gain most.",
        [
            (
                quantile(0.5, "pars_time_per_output_token_seconds", "expected"),
                "p50, expected {{expected}}",
            )
        ],
    ),
    (
        "Slowdown against first come, first served",
        "short",
        "The bound says how far above 1 it may go.",
        [
            (quantile(0.5, "pars_slowdown_ratio", "class"), "p50 {{class}}"),
            (quantile(0.99, "pars_slowdown_ratio", "class"), "p99 {{class}}"),
        ],
    ),
    (
        "Seconds of waiting saved and added, a second",
        "short",
        "By class.",
        [
            (rate("pars_wait_saved_seconds_total", "class"), "saved, {{class}}"),
            (rate("pars_wait_added_seconds_total", "class"), "added, {{class}}"),
        ],
    ),
    (
        "Order of predictions (tau-b)",
        "short",
        "0 is chance. The queue goes by what was learned while its lower end is above 0.",
        [
            (gauge("pars_online_tau_b"), "learned"),
            (gauge("pars_online_tau_b_low"), "its lower end"),
            (gauge("pars_ranker_tau_b"), "ranker"),
        ],
    ),
    (
        "Decisions",
        "reqps",
        "How each request's priority came about.",
        [(rate("pars_decisions_total", "outcome"), "{{outcome}}")],
    ),
    (
        "Classes, and the express bucket",
        "short",
        "An empty bucket: nobody goes first until express has paid back.",
        [
            (rate("pars_requests_by_class_total", "class"), "{{class}} requests/s"),
            (gauge("pars_express_bucket_ratio"), "bucket, 1 is full"),
        ],
    ),
    (
        "Time per output token by model",
        "s",
        "Mean over all, and the median by model.",
        [
            (quantile(0.5, "pars_model_time_per_output_token_seconds", "model"), "p50 {{model}}"),
            (mean("pars_model_time_per_output_token_seconds"), "mean, all"),
        ],
    ),
    (
        "Who waits, by tenant",
        "short",
        "Requests that the engine has not begun to answer, where there are tenants (--tenants).",
        [(gauge("pars_tenant_requests_waiting"), "{{tenant}}")],
    ),
    (
        "Share of the work, by tenant",
        "percentunit",
        "What each got of all tokens, beside its share by weight, which is its due while it waits.",
        [
            (
                f"{rate('pars_tenant_work_tokens_total', 'tenant')} / ignoring (tenant) group_left"
                f" sum(rate(pars_tenant_work_tokens_total{{{SCOPE}}}[{WINDOW}]))",
                "{{tenant}}",
            ),
            (f"max by (tenant) ({gauge('pars_tenant_share_ratio')})", "{{tenant}}, by weight"),
        ],
    ),
    (
        "Wait by tenant",
        "s",
        "A tenant that sends more than its share waits behind itself.",
        [
            (quantile(0.5, "pars_tenant_wait_seconds", "tenant"), "p50 {{tenant}}"),
            (quantile(0.99, "pars_tenant_wait_seconds", "tenant"), "p99 {{tenant}}"),
        ],
    ),
    (
        "Time per output token by tenant",
        "s",
        "End to end, with the wait.",
        [
            (
                quantile(0.5, "pars_tenant_time_per_output_token_seconds", "tenant"),
                "p50 {{tenant}}",
            )
        ],
    ),
    (
        "What the order is worth beside held-out windows",
        "percentunit",
        "By how much the time per output token is shorter, with its 95% interval (--holdout).",
        [
            (gauge("pars_holdout_gain_ratio"), "time per token"),
            (gauge("pars_holdout_gain_ratio_low"), "lower end"),
            (gauge("pars_holdout_gain_ratio_high"), "upper end"),
        ],
    ),
    (
        "Wait, in order and held out",
        "s",
        "Of requests in windows that are first come, first served, and in the others.",
        [(quantile(0.5, "pars_holdout_wait_seconds", "arm"), "p50 {{arm}}")],
    ),
    (
        "What a decision takes",
        "s",
        "Between a request's last byte and its passing on.",
        [
            (quantile(0.5, "pars_decision_seconds"), "p50"),
            (quantile(0.99, "pars_decision_seconds"), "p99"),
        ],
    ),
    (
        "Learned, and failures",
        "short",
        "Answers learned a second, and what went wrong.",
        [
            (f"rate(pars_answers_learned_total{{{SCOPE}}}[{WINDOW}])", "answers learned"),
            (rate("pars_learning_failures_total", "instance"), "not kept"),
            (rate("pars_held_refused_total", "reason"), "refused: {{reason}}"),
        ],
    ),
]


def panel(number: int, title: str, unit: str, says: str, lines: list[tuple[str, str]]) -> dict:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": says,
        "datasource": source,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(65 + at), "datasource": source, "expr": query, "legendFormat": legend}
            for at, (query, legend) in enumerate(lines)
        ],
    }


def variable(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": f"label_values(pars_decisions_total, {name})",
        "multi": True,
        "includeAll": True,
        "refresh": 2,
    }


def board() -> dict[str, Any]:
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "title": "pars",
        "uid": "pars",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [source, variable("job"), variable("instance")]},
        "panels": [panel(number, *told) for number, told in enumerate(PANELS)],
    }


if __name__ == "__main__":
    BOARD.write_text(json.dumps(board(), indent=1) + "\n")
