"""What `--benchmark-json FILE` writes: the figures and what they were measured on, no host name."""

from __future__ import annotations

from typing import Any

from ds2ds.environment import environment

KEPT = ("median", "min", "iqr", "rounds")


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    results = [
        {"name": one["name"], **{key: one["stats"][key] for key in KEPT}, **one["extra_info"]}
        for one in output_json["benchmarks"]
    ]
    output_json.clear()
    output_json.update(environment=environment(), results=results)
