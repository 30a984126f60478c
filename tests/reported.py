"""Run folders with something of everything, written without a model, for tests of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.judging.aggregate import LabelStatistics
from rlaif.prompts import PromptLibrary
from rlaif.report.comparison import comparison_tables
from rlaif.results.comparison import PolicyComparison, PolicyDifference
from rlaif.results.evaluation import CompletionRows, Cost, Evaluation, PolicyResult, WinRate, pair_id
from rlaif.results.monitor import READINGS, MonitorReading, MonitorReport
from rlaif.results.overoptimization import OptimizationFit, OptimizationPoint
from rlaif.results.rows import preference_row, verdict_row
from rlaif.results.study import SeedDifference, Study, StudyPolicy
from rlaif.runs.manifest import MANIFEST, Manifest, Output
from rlaif.stats import Estimate
from rlaif.types import Comparison, Completion, Message, Order, Preference, Prompt, Verdict

__all__ = ["EVIL", "PROMPTS", "STAGES", "readings", "write_run", "write_study"]

EVIL = (
    "<script>document.title = 'run'</script></script><!-- <img src=x onerror=\"document.title='run'\"> \u202eevil\u2066 "
    "&amp; &lt;b&gt; \u2028 \"quoted\" 'single' `tick` {{ 7 * 7 }} \\u003c \x1b[31m \ud800 ]]>"
)
"""What must be shown and not obeyed."""
PROMPTS = 4
STAGES = ("sample", "label", "reward", "ppo", "evaluate", "compare")


def write_run(
    folder: Path,
    *,
    stages: Sequence[str] = STAGES,
    status: str = "finished",
    text: str = EVIL,
    prompts: int = PROMPTS,
) -> Path:
    """A run of a recipe with `STAGES`, of which `stages` have finished; completions and prompts hold `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "name": f"told {text[:8]}",
        "command": ["rlaif", "run"],
        "status": status,
        "started": "2026-01-01T00:00:00+00:00",
        "stages": list(stages),
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "recipe.yaml").write_text("stages:\n" + "".join(f"  - stage: {name}\n" for name in STAGES))
    writers = {"label": _label, "reward": _reward, "ppo": _ppo, "evaluate": _evaluate, "compare": _compare}
    for name in stages:
        (folder / name).mkdir()
        outputs = writers[name](folder / name, text, prompts) if name in writers else {"completions.jsonl": 0}
        _manifest(name, outputs).write_json(folder / name / MANIFEST)
    return folder


def _manifest(stage: str, outputs: Mapping[str, int]) -> Manifest:
    return Manifest(
        stage=stage,
        kind=stage,
        key="k",
        parts={"seed": "0", "rlaif": "0.1.0"},
        config={},
        models={"judge": "told@1"},
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:02+00:00",
        seconds=2.0,
        counts={"prompts": PROMPTS},
        outputs={name: Output("0" * 64, rows) for name, rows in outputs.items()},
        peak_bytes=10**9,
    )


def _prompt(number: int, text: str) -> Prompt:
    return Prompt(id=f"p{number}", messages=(Message("user", f"question {number} {text}"),))


def _completion(prompt: Prompt, index: int, text: str, model: str) -> Completion:
    return Completion(
        id=f"{prompt.id}/{index}", prompt_id=prompt.id, index=index, text=text, finish="stop", model=model
    )


def _verdicts(id: str, number: int) -> tuple[Verdict, ...]:
    """Both orders of two principles: the first pair flips under `kind`, the second has an invalid verdict."""
    flipping = -1.0 if number == 0 else 1.5
    last = (
        Verdict(id, "calm", Order.BA, None, reason="no label <b>")
        if number == 1
        else Verdict(id, "calm", Order.BA, 0.5)
    )
    return (
        Verdict(id, "kind", Order.AB, 1.0),
        Verdict(id, "kind", Order.BA, flipping),
        Verdict(id, "calm", Order.AB, 0.7),
        last,
    )


def _jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _label(folder: Path, text: str, prompts: int) -> dict[str, int]:
    statistics, rows, library = LabelStatistics(), [], PromptLibrary()
    for number in range(prompts):
        prompt = _prompt(number, text)
        comparison = Comparison(
            prompt=prompt,
            a=_completion(prompt, 0, f"first {number} {text}", "start"),
            b=_completion(prompt, 1, f"second {number}", "start"),
        )
        verdicts = _verdicts(comparison.id, number)
        statistics.add(verdicts, 0.6)
        rows.append(preference_row(Preference(comparison, verdicts, 0.6), library, {"judge": "told@1"}))
    told = statistics.as_dict() | {"audit": {"grade": "use with care", "line": f"audit (pairwise): {text}"}}
    (folder / "statistics.json").write_text(json.dumps(told))
    return {"preferences.jsonl": _jsonl(folder / "preferences.jsonl", rows)}


def _reward(folder: Path, text: str, prompts: int) -> dict[str, int]:
    scored = {"pairs": 9, "accuracy": 0.7, "low": 0.5, "high": 0.9, "loss": 0.6, "ece": 0.05}
    bins = [
        {"low": 0.5, "high": 0.6, "rows": 6, "confidence": 0.55, "accuracy": 0.5},
        {"low": 0.6, "high": 0.7, "rows": 3, "confidence": 0.65, "accuracy": 0.7},
    ]
    report = {
        "kept": "lora",
        "held_out_pairs": 9,
        "held_out": {"lora": scored, "judge": scored},
        "reliability": bins,
    }
    (folder / "report.json").write_text(json.dumps(report))
    return {"model": 0}


def _ppo(folder: Path, text: str, prompts: int) -> dict[str, int]:
    steps = [
        {
            "step": step,
            "reward": 0.1 * step,
            "kl": 0.5 * step,
            "entropy": 2.0 - 0.1 * step,
            "length": 20.0 + step,
        }
        for step in range(5)
    ]
    report = MonitorReport(readings(), patience=3)
    (folder / "statistics.json").write_text(json.dumps({"monitor": report.as_dict()}))
    return {
        "metrics.jsonl": _jsonl(folder / "metrics.jsonl", steps),
        READINGS: _jsonl(folder / READINGS, [each.as_row() for each in report.readings]),
    }


def readings() -> tuple[MonitorReading, ...]:
    """Of a policy that is over-optimised: gold = d (0.4 − 0.3 log d) turns at d = 1.396."""
    found = []
    for step, d in enumerate((0.0, 0.5, 1.0, 2.0, 3.0)):
        gold = d * (0.4 - 0.3 * math.log(d)) if d else 0.0
        found.append(
            MonitorReading(
                step=step,
                kl=d * d,
                proxy=Estimate(d, d - 0.1, d + 0.1),
                gold=Estimate(gold, gold - 0.2, gold + 0.2),
                parts={"model": d},
                length=10.0 + step,
                distinct_2=0.5,
                refusal=0.25,
                ended=1.0,
                tokens=100,
                seconds=1.5,
                flops=1e9,
            )
        )
    return tuple(found)


def evaluation(text: str, prompts: int = PROMPTS) -> Evaluation:
    """Two policies; `ppo` loses on the second prompt, and on the third its reward is higher and gold lower."""
    return Evaluation(
        start="start",
        gold="gold",
        prompts=prompts,
        samples=1,
        max_new_tokens=8,
        temperature=1.0,
        seed=0,
        policies=(_policy("start", text, prompts), _policy("ppo", text, prompts)),
    )


def _policy(name: str, text: str, prompts: int) -> PolicyResult:
    trained = name == "ppo"
    win = (
        WinRate(4, 2, 1, 1, 0, 0, {}, 0.25, Estimate(0.6, 0.4, 0.8), Estimate(0.55, 0.4, 0.7), 0.1)
        if trained
        else None
    )
    return PolicyResult(
        name=name,
        model="tiny (policy)",
        estimates={
            "gold": Estimate(0.2 + 0.1 * trained, 0.1, 0.5),
            "reward": Estimate(0.0 + trained, -0.2, 1.2),
            "kl": Estimate(4.0 * trained, 0.0, 5.0),
            "tokens": Estimate(20.0 + 5 * trained, 18.0, 27.0),
        },
        win=win,
        cost=Cost(80, 40, 1e9, 1.0, 10**9),
        rows=CompletionRows(
            prompts=tuple(f"p{number}" for number in range(prompts)),
            texts=tuple(f"{name} {number} {text}" for number in range(prompts)),
            measures={
                "reward": tuple(float(trained) for _ in range(prompts)),
                "gold": tuple(0.0 if trained and number == 2 else 0.5 for number in range(prompts)),
                "win": tuple((0.0 if number == 1 else 1.0) if trained else None for number in range(prompts)),
            },
        ),
    )


def _evaluate(folder: Path, text: str, prompts: int) -> dict[str, int]:
    found = evaluation(text, prompts)
    (folder / "evaluation.json").write_text(json.dumps(found.as_dict()))
    rows = [
        {
            "policy": policy.name,
            "prompt_id": id,
            "prompt": [{"role": "user", "content": f"asked {id} {text}"}],
            "completion": words,
            "measures": {},
        }
        for policy in found.policies
        for id, words in zip(policy.rows.prompts, policy.rows.texts, strict=True)
    ]
    said = [
        {**verdict_row(each), "comparison_id": pair_id("ppo", f"p{number}", 0)}
        for number in range(prompts)
        for each in _verdicts(f"p{number}", number)
    ]
    _jsonl(folder / "completions.jsonl", rows)
    return {"evaluation.json": 1, "verdicts.jsonl": _jsonl(folder / "verdicts.jsonl", said)}


def _compare(folder: Path, text: str, prompts: int) -> dict[str, int]:
    found = comparison(text, prompts)
    tables = [
        {"title": each.title, "header": each.header, "rows": each.rows} for each in comparison_tables(found)
    ]
    (folder / "comparison.json").write_text(json.dumps({**found.as_dict(), "tables": tables}))
    return {"comparison.json": 1}


def comparison(text: str, prompts: int = PROMPTS) -> PolicyComparison:
    """`ppo` against `start`, with a best-of-K curve that turns."""
    points = tuple(
        OptimizationPoint(
            f"K = {k}", kl, Estimate(kl, kl - 0.1, kl + 0.1), Estimate(gain, gain - 0.1, gain + 0.1)
        )
        for k, kl, gain in ((1, 0.0, 0.0), (2, 0.2, 0.3), (4, 0.6, 0.4), (8, 1.2, 0.3))
    )
    return PolicyComparison(
        start="start",
        gold="gold",
        headline="gold",
        prompts=prompts,
        policies=evaluation(text, prompts).policies,
        training={},
        differences=(PolicyDifference("ppo", "start", "gold", prompts, Estimate(0.1, -0.1, 0.3)),),
        optimisations=(),
        at_budgets=(),
        best_of_k=points,
        best_of_k_fit=OptimizationFit("best_of_k", 1.0, 0.8, 1.1),
        notes=(f"a note {text}",),
    )


def write_study(folder: Path, *, text: str = "s") -> Path:
    """A study of two seeds, one of whose runs has a page."""
    estimate = Estimate(0.2, 0.1, 0.3)
    policies = tuple(
        StudyPolicy(name, (0, 7), {"gold": {0: 0.1, 7: 0.3}}, {"gold": estimate}, (1, 1), None)
        for name in ("start", "ppo")
    )
    difference = SeedDifference("ppo", "start", "gold", 4, estimate, seeds=2, above=2)
    found = Study(
        name=text,
        headline="gold",
        gold="gold",
        start="start",
        seeds=(0, 7),
        prompts=4,
        policies=policies,
        differences=(difference,),
        failed={"seed-9": text},
    )
    (folder / "seed-0").mkdir(parents=True)
    (folder / "seed-0" / "report.html").write_text("")
    (folder / "study.json").write_text(json.dumps(found.as_dict()))
    return folder
