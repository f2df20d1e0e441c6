# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Insights of the sandbox: partial rows first, limits, and answers that fit botocore's own models."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sandbox.errors import ApiError
from sandbox.insights import MOST_AT_ONCE, Queries
from sandbox.logs import LogStore

from .conftest import SandboxUnderTest
from .test_honesty import answer, operation_model, post

START = 1_764_000_000
QUERY = "fields @timestamp, @message | sort @timestamp asc"
ASKED = {"logGroupName": "/g", "startTime": START, "endTime": START + 9, "queryString": QUERY}


@pytest.fixture
def queries() -> Queries:
    logs = LogStore()
    logs.create_group("/g", START * 1000)
    logs.put("/g", "s", [(START * 1000 + at * 500, START * 1000 + 9000, f"line {at}") for at in range(30)])
    return Queries(logs)


def values(row: list[dict[str, str]]) -> dict[str, str]:
    return {cell["field"]: cell["value"] for cell in row}


def test_rows_are_partial_while_it_runs_and_both_ends_are_included(queries: Queries) -> None:
    identifier = queries.start_query(ASKED)["queryId"]
    first = queries.get_query_results({"queryId": identifier})
    assert (first["status"], len(first["results"])) == ("Running", 10)
    done = queries.get_query_results({"queryId": identifier})
    assert (done["status"], len(done["results"]), done["statistics"]["recordsMatched"]) == ("Complete", 20, 20)
    assert done["statistics"]["bytesScanned"] > 20 * 26
    row = values(done["results"][1])
    assert row == {"@timestamp": "2025-11-24 16:00:00.500", "@message": "line 1", "@ptr": row["@ptr"]}
    assert len({values(row)["@ptr"] for row in done["results"]}) == 20


def test_a_limit_cuts_the_rows_and_not_what_matched(queries: Queries) -> None:
    for request in ({"limit": 7}, {"queryString": f"{QUERY} | limit 7"}):
        identifier = queries.start_query(ASKED | request)["queryId"]
        queries.get_query_results({"queryId": identifier})
        done = queries.get_query_results({"queryId": identifier})
        assert (len(done["results"]), done["statistics"]["recordsMatched"]) == (7, 20)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"queryString": "stats count(*) by bin(1m)"}, "MalformedQueryException"),
        ({"queryString": "fields @nonsense | sort @timestamp asc"}, "MalformedQueryException"),
        ({"logGroupName": "/other"}, "ResourceNotFoundException"),
        ({"startTime": START + 10}, "InvalidParameterException"),
        ({"limit": 10_001}, "InvalidParameterException"),
    ],
)
def test_what_can_not_be_asked_is_refused_as_aws_does(queries: Queries, change: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as caught:
        queries.start_query(ASKED | change)
    assert caught.value.code == code


def test_only_so_many_queries_run_at_once(queries: Queries) -> None:
    for _ in range(MOST_AT_ONCE):
        queries.start_query(ASKED)
    with pytest.raises(ApiError) as caught:
        queries.start_query(ASKED)
    assert caught.value.code == "LimitExceededException"


def test_insights_answers_fit_the_models(quiet: SandboxUnderTest) -> None:
    now = int(time.time())
    asked = {"logGroupName": "/ecs/cabal-smtp-in", "startTime": now - 86_400, "endTime": now, "queryString": QUERY}
    identifier = answer(quiet, "logs", "StartQuery", asked)
    assert answer(quiet, "logs", "GetQueryResults", identifier)["status"] == "Running"
    assert answer(quiet, "logs", "GetQueryResults", identifier)["results"]
    for operation, request in (("StartQuery", asked | {"logGroupName": "/no"}), ("GetQueryResults", {"queryId": "no"})):
        status, body = post(quiet, "logs", operation, request)
        assert status == 400
        known = {shape.name for shape in operation_model("logs", operation).error_shapes}
        assert body["__type"].rpartition("#")[2] in known
