"""The reward `judge` in the mode `cohort`: how strong a completion is among those of its prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rlaif.errors import DataError
from rlaif.judging.cohort import Meeting, bradley_terry, connected, meetings
from rlaif.judging.judge import Judge
from rlaif.reward.functions import Scores
from rlaif.types import Comparison, Completion, Prompt

__all__ = ["CohortReward"]


class CohortReward:
    """Strengths of completions among those of the same prompt, in one call: nats, with mean 0 over the
    different texts of a prompt.

    A judge that compares two says more reliably which is better than how good each is; a method that looks
    at differences within a prompt only (GRPO, RLOO) loses nothing by it. Completions with the same text share
    one strength; where a prompt has one text only, it is 0.

    Args:
        judge: Compares two completions.
        seed: Fixes which of more than four are compared.
    """

    def __init__(self, judge: Judge, *, seed: int, name: str = "judge") -> None:
        self.name = name
        self._judge = judge
        self._seed = seed

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """One score each.

        Raises:
            DataError: The judge gave no valid label that connects a completion with all others of its prompt.
        """
        cohorts = _cohorts(prompts, completions)
        asked, places = [], []
        for key, texts in cohorts.items():
            first = [rows[0] for rows in texts]
            all_of_it = tuple(completions[row] for row in first)
            for i, j in meetings(len(first), self._seed, key):
                a, b = completions[first[i]], completions[first[j]]
                asked.append(Comparison(prompt=prompts[first[i]], a=a, b=b, cohort=all_of_it))
                places.append((key, i, j))
        met: dict[str, list[Meeting]] = defaultdict(list)
        reasons: dict[str, str] = {}
        for (key, i, j), judged in zip(places, self._judge.judge(asked), strict=True):
            if judged.logit_a is not None:
                met[key].append(Meeting(i, j, judged.logit_a))
            else:
                reasons[key] = next((each.reason for each in judged.verdicts if each.reason), "")
        scores = [0.0] * len(completions)
        for key, texts in cohorts.items():
            if len(connected(met[key], len(texts))) > 1:
                raise _unranked(prompts[texts[0][0]], reasons.get(key) or "no finite reading")
            for strength, rows in zip(bradley_terry(met[key], len(texts)), texts, strict=True):
                for row in rows:
                    scores[row] = strength
        return Scores(total=tuple(scores), parts={self.name: tuple(scores)})


def _cohorts(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[list[int]]]:
    """By prompt, the rows of each different text."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        found[prompt.fingerprint()][completion.text.strip()].append(row)
    return {key: list(texts.values()) for key, texts in found.items()}


def _unranked(prompt: Prompt, reason: str) -> DataError:
    return DataError(
        f"the judge's valid answers do not connect all completions ({reason})",
        where=f"prompt {prompt.id}",
        remedy="see `rlaif audit`, or lower min_label_share",
    )
