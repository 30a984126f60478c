"""What a run may cost is a matter of the run, not of one invocation: it is kept, shared by its models,
printed and planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from misbehaving import MisbehavingServer
from spine import call, rows

from rlaif.engines.api.costs import Budget, CostLimitError, Ledger, Prices
from rlaif.errors import RunError
from rlaif.runs.spending import SPENDING, Spending, Spent

PRICES = ("--price-input", 10, "--price-output", 10)
SERVER = ("--server", "reads=logprobs", "--server", "continues=false")


def _label(out: Path, url: str, *rest: object) -> tuple[object, ...]:
    responses = out.parent / "responses.jsonl"
    if not responses.exists():
        lines = [
            json.dumps({"prompt": f"Say {number}.", "responses": ["Gladly.", "No."]}) for number in range(12)
        ]
        responses.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return (
        "label",
        "--responses",
        responses,
        "--constitution",
        "default",
        "--judge",
        "openai:toy",
        "--base-url",
        url,
        *SERVER,
        *PRICES,
        "--out",
        out,
        *rest,
    )


def _cost(out: Path) -> float:
    return sum(row["cost"] for row in rows(out / SPENDING))


def test_a_limit_holds_over_all_invocations_of_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with MisbehavingServer() as server:
        (tmp_path / "whole").mkdir()
        whole = call(*_label(tmp_path / "whole" / "run", server.url))
        assert whole.status == 0, whole.err
        cost = _cost(tmp_path / "whole" / "run")
        limit = cost / 2
        asked = len(server.asked)
        first = call(*_label(out, server.url, "--max-cost", limit))
        assert first.status == 1
        assert "could cost more than is left" in first.err
        spent = _cost(out)
        assert 0 < spent <= limit
        answered = len(server.asked) - asked
        again = call(*_label(out, server.url, "--max-cost", limit))
        assert again.status == 1
        assert len(server.asked) - asked - answered < answered, "what was spent before counts"
        assert _cost(out) <= limit
        last = call(*_label(out, server.url, "--max-cost", 2 * cost))
        assert last.status == 0, last.err
        probes = 4 * 0.0003  # each invocation asks the server anew how it reads
        assert cost <= _cost(out) <= cost + probes, "nothing is asked, or paid for, twice"
        assert "this run has cost" in last.out
        assert "allowed" in last.out
        assert "toy: " in last.out


def test_a_dry_run_plans_the_cost(tmp_path: Path) -> None:
    planned = call(*_label(tmp_path / "run", "http://127.0.0.1:9/v1", "--dry-run"))
    assert planned.status == 0, planned.err
    assert "cost at most" in planned.out


def test_engines_of_a_run_share_one_budget() -> None:
    prices, budget = Prices(input=1.0, output=1.0), Budget(0.001, spent=0.0005)
    judge, policy = (Ledger(prices, 0.001, budget=budget, model=name) for name in ("judge", "policy"))
    judge.reserve(300, 300)
    with pytest.raises(CostLimitError, match=r"0\.0005 of 0\.001"):
        policy.reserve(300, 300)


def test_an_account_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / SPENDING
    first = Spending(path)
    for number in range(3):
        first.add(Spent("toy", 1, 10, number, 0.5))
    first.add(Spent("other", 1, 1, 1, 0.0))
    rows_of_a_living_process = path.read_text(encoding="utf-8")
    first.close()
    # Killed in the middle of a line.
    path.write_text(rows_of_a_living_process + '{"model": "toy", "requ', encoding="utf-8")
    with Spending(path) as second:
        assert second.cost == 1.5
        assert second.models == (Spent("toy", 3, 30, 3, 1.5), Spent("other", 1, 1, 1, 0.0))
        second.add(Spent("toy", 1, 1, 1, 0.5))
    assert [row["cost"] for row in rows(path)] == [2.0, 0.0]


COUNTS = '"requests": 1, "prompt_tokens": 1, "completion_tokens": 1'


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "7",
        '{"model": "toy"}',
        f'{{"model": 1, {COUNTS}, "cost": 1}}',
        f'{{"model": "toy", {COUNTS}, "cost": NaN}}',
    ],
)
def test_a_damaged_account_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / SPENDING).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="row of what was spent is damaged"):
        Spending(tmp_path / SPENDING)
