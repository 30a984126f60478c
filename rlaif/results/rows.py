"""Rows of the files that stages leave: plain dictionaries, the same keys and types in every row.

The preferences rows are TRL's conversational preference format (`prompt`, `chosen`, `rejected` as message
lists) with our columns beside it, so that `datasets.load_dataset` opens them and any TRL trainer takes them
as they are. TRL reads the pairs only: it ignores `p_chosen`, so to TRL every label is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from rlaif.labels import sigmoid
from rlaif.prompts import PromptLibrary
from rlaif.results.revisions import Revision
from rlaif.types import Completion, Criterion, Message, Order, Preference, Prompt, Verdict

__all__ = [
    "columns_for_judges",
    "completion_from_row",
    "completion_row",
    "dropped_row",
    "preference_row",
    "revision_row",
    "rubric_row",
    "sft_rows",
    "verdict_row",
]

DIGITS = 6
"""Decimals of probabilities and log-odds in files: finer than any rounding of bfloat16, coarse enough to
read."""


def columns_for_judges(prompts: Iterable[Prompt]) -> frozenset[str]:
    """Those of the columns `rubric` and `reference` that a file about `prompts` has: the ones that any of
    them fills."""
    found: set[str] = set()
    for prompt in prompts:
        found |= {"rubric"} if prompt.rubric else set()
        found |= {"reference"} if prompt.reference is not None else set()
    return frozenset(found)


def completion_row(completion: Completion, prompt: Prompt, columns: Set[str] = frozenset()) -> dict[str, Any]:
    """A sampled completion: its prompt and text as message lists (`prompt`, `completion`), as TRL's SFT
    format has them.

    Args:
        columns: As `columns_for_judges` gives them for the whole file.
    """
    return {
        "id": completion.id,
        "prompt_id": prompt.id,
        "index": completion.index,
        "prompt": _dicts(prompt.messages),
        "completion": _turn(completion.text),
        "finish": completion.finish,
        "tokens": completion.tokens,
        "policy": completion.model,
        "context": list(prompt.context),
        "tags": list(prompt.tags),
        **_for_judges(prompt, columns),
    }


def completion_from_row(row: Mapping[str, Any]) -> tuple[Prompt, Completion]:
    """The prompt and the completion that `completion_row` wrote."""
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in row["prompt"])
    prompt = Prompt(
        id=row["prompt_id"],
        messages=messages,
        context=tuple(row["context"]),
        tags=tuple(row["tags"]),
        rubric=tuple(_criterion(each) for each in row.get("rubric") or ()),
        reference=row.get("reference"),
    )
    return prompt, Completion(
        id=row["id"],
        prompt_id=row["prompt_id"],
        index=row["index"],
        text=row["completion"][-1]["content"],
        finish=row["finish"],
        model=row["policy"],
        tokens=row["tokens"],
    )


def dropped_row(
    prompt: Prompt, scores: Mapping[str, float], thresholds: Mapping[str, float]
) -> dict[str, Any]:
    """A prompt that a moderator did not let pass, its scores, and the categories that flag it."""
    return {
        "prompt_id": prompt.id,
        "prompt": _dicts(prompt.messages),
        "flagged": [name for name, value in scores.items() if value >= thresholds[name]],
        "scores": {name: round(value, DIGITS) for name, value in scores.items()},
        "tags": list(prompt.tags),
    }


def rubric_row(prompt: Prompt, rubric: Iterable[Criterion], columns: Set[str]) -> dict[str, Any]:
    """A prompt with a rubric, as every reader of prompts reads it; `columns` as for `completion_row`."""
    return {
        "id": prompt.id,
        "prompt": _dicts(prompt.messages),
        "context": list(prompt.context),
        "tags": list(prompt.tags),
        **_for_judges(prompt, columns),
        "rubric": [each.meaning() for each in rubric],
    }


def preference_row(
    preference: Preference, library: PromptLibrary, common: Mapping[str, Any], columns: Set[str] = frozenset()
) -> dict[str, Any]:
    """A labelled comparison, told from the chosen completion's side.

    `p_chosen` (in [0.5, 1]) is the soft label, `log_odds` (nats, at least 0) its log-odds: the reward
    difference that a Bradley–Terry model would need to say the same. It is not called `margin` (as up to
    0.1.0), since TRL's `RewardTrainer` takes a column of that name as Llama 2's margin and trains on another
    loss. `prompt` is what the policy read, retrieved documents included.

    Args:
        common: Columns that are equal in all rows (judge, constitution, digests, seed).
        columns: As `columns_for_judges` gives them for the whole file.
    """
    comparison, verdicts, logit = preference.comparison, preference.verdicts, preference.logit_a
    if logit < 0:
        comparison, verdicts, logit = comparison.swap(), tuple(verdict.swap() for verdict in verdicts), -logit
    prompt = comparison.prompt
    return {
        "id": preference.comparison.id,
        "prompt_id": prompt.id,
        "prompt": _dicts(library.policy(prompt)),
        "chosen": _turn(comparison.a.text),
        "rejected": _turn(comparison.b.text),
        "p_chosen": round(sigmoid(logit), DIGITS),
        "log_odds": round(logit, DIGITS),
        "chosen_id": comparison.a.id,
        "rejected_id": comparison.b.id,
        "verdicts": [_chosen_verdict(verdict) for verdict in verdicts],
        "chosen_policy": comparison.a.model,
        "rejected_policy": comparison.b.model,
        "tags": list(prompt.tags),
        **_for_judges(prompt, columns),
        **common,
    }


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """One verdict as it was given, `a` and `b` as the comparison has them; for the record, valid or not."""
    return {
        "comparison_id": verdict.comparison_id,
        **_judge_of(verdict),
        "principle": verdict.principle_id,
        "order": str(verdict.order),
        "valid": verdict.valid,
        "reason": verdict.reason,
        "reasoning": verdict.reasoning,
        "p_a": _probability(verdict.logit_a),
        "logit_a": _rounded(verdict.logit_a),
        "logprobs": {name: round(value, DIGITS) for name, value in sorted(verdict.evidence.items())},
    }


def revision_row(revision: Revision) -> dict[str, Any]:
    """A chain of critiques and revisions with every intermediate text."""
    return {
        "prompt_id": revision.prompt.id,
        "prompt": _dicts(revision.prompt.messages),
        "initial": revision.initial,
        "rounds": [
            {"principle": step.principle_id, "critique": step.critique, "revision": step.revision}
            for step in revision.rounds
        ],
        "final": revision.final,
        "failed": revision.failed,
        "tags": list(revision.prompt.tags),
    }


def sft_rows(
    revision: Revision, library: PromptLibrary, common: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The revisions of all rounds as TRL's conversational prompt–completion rows (Bai et al. 2022 fine-tune
    on all of them).

    Empty revisions and ones that repeat an earlier text of the chain word for word are left out: they would
    teach nothing new.
    """
    seen: set[str] = set()
    for number, step in enumerate(revision.rounds, start=1):
        if step.revision and step.revision not in seen:
            seen.add(step.revision)
            yield {
                "id": f"{revision.prompt.id}/r{number}",
                "prompt_id": revision.prompt.id,
                "prompt": _dicts(library.policy(revision.prompt)),
                "completion": _turn(step.revision),
                "round": number,
                "principle": step.principle_id,
                "tags": list(revision.prompt.tags),
                **common,
            }


def _chosen_verdict(verdict: Verdict) -> dict[str, Any]:
    orders = {Order.AB: "chosen_first", Order.BA: "rejected_first", Order.ALONE: "alone"}
    return {
        **_judge_of(verdict),
        "principle": verdict.principle_id,
        "order": orders[verdict.order],
        "valid": verdict.valid,
        "reason": verdict.reason,
        "p_chosen": _probability(verdict.logit_a),
    }


def _judge_of(verdict: Verdict) -> dict[str, str]:
    """The column `judge` of verdicts, which files of one judge do not have."""
    return {"judge": verdict.judge} if verdict.judge else {}


def _for_judges(prompt: Prompt, columns: Set[str]) -> dict[str, Any]:
    values = {"rubric": [each.meaning() for each in prompt.rubric] or None, "reference": prompt.reference}
    return {name: value for name, value in values.items() if name in columns}


def _criterion(value: Mapping[str, Any]) -> Criterion:
    points = 0.0 if value["must"] else float(value["points"])
    return Criterion(text=value["text"], points=points, must=value["must"], tags=tuple(value["tags"]))


def _dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _probability(logit: float | None) -> float | None:
    return None if logit is None else round(sigmoid(logit), DIGITS)
