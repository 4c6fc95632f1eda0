"""Requests made of the server's own description, fitting and not: each is answered as described, and none by a 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from scripted import Texts, is_clean, small_runtime
from serving import body, listening

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    runtime = small_runtime(arena_tokens=20_000)
    with listening(runtime, {"c": Texts({"A": "about A"})}, max_choices=8) as (url, _):
        yield url
    assert is_clean(runtime)


def made_up_requests(url: str, examples: int) -> dict[str, Counter[int]]:
    """Make up requests to every path, and check every answer. Returns how often each status came."""
    statuses: dict[str, Counter[int]] = {}
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        seen = statuses.setdefault(operation.path, Counter())
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode == GenerationMode.NEGATIVE and operation.method == "get":
                continue  # there is nothing to be wrong about
            answer_all(operation.as_strategy(generation_mode=mode), examples, seen)
    return statuses


def answer_all(cases: Any, examples: int, seen: Counter[int]) -> None:
    @hypothesis_settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def answer(case: Any) -> None:
        # A made-up name of a model would be all that is looked at.
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = body()["model"]
        response = case.call()
        seen[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    answer()


def test_no_made_up_request_is_a_server_error(url: str) -> None:
    statuses = made_up_requests(url, 40)
    assert set(statuses) == {"/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    assert statuses["/v1/completions"][400] > 20


@pytest.mark.slow
def test_no_made_up_request_is_a_server_error_at_length(url: str) -> None:
    statuses = made_up_requests(url, 600)
    assert statuses["/v1/completions"][200] > 20
