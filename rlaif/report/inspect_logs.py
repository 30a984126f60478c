"""An evaluation as logs of Inspect (https://inspect.aisi.org.uk), one a policy: `inspect view` opens them.

A completion is a sample, its number the epoch, each measure a score; the judge's verdicts are the explanation
of `win`. Needs `pip install 'rlaif-toolkit[inspect]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.report.page.model import Asked
from rlaif.report.page.samples import asked_of, prompts_of, verdicts_of
from rlaif.results.evaluation import WIN, Evaluation, PolicyResult, pair_id
from rlaif.text import one_line

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

__all__ = ["inspect_logs"]


def inspect_logs(found: Evaluation, folder: Path, *, name: str, created: str) -> dict[str, EvalLog]:
    """A log of each policy, by its name: the same values for the same evaluation.

    Args:
        folder: Of the evaluate stage; prompts and verdicts are read there.
        name: Of the run.
        created: When it was evaluated, ISO 8601.

    Raises:
        ConfigError: inspect_ai is not installed.
        DataError: A file of the stage is damaged.
    """
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"logs for Inspect need the package {error.name}", remedy="pip install 'rlaif-toolkit[inspect]'"
        ) from error
    prompts = prompts_of(folder, {id for each in found.policies for id in each.rows.prompts})
    verdicts = verdicts_of(folder)
    return {
        policy.name: _log(found, policy, prompts, verdicts, name=name, created=created)
        for policy in found.policies
    }


def _log(
    found: Evaluation,
    policy: PolicyResult,
    prompts: Mapping[str, Sequence[Mapping[str, Any]]],
    verdicts: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    name: str,
    created: str,
) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    samples = list(_samples(policy, prompts, verdicts))
    key = digest([name, created, policy.name])[:22]
    spec = EvalSpec(
        eval_id=f"e{key}",
        run_id=digest([name, created])[:22],
        task_id=f"t{key}",
        created=created,
        task=f"{one_line(name)}: {one_line(policy.name)}",
        dataset=EvalDataset(name="held-out prompts", samples=found.prompts),
        model=f"rlaif/{one_line(policy.name)}",
        config=EvalConfig(epochs=found.samples),
        metadata={"start": found.start, "gold": found.gold, "seed": found.seed, "base": policy.model},
    )
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=_means(policy))
    stats = EvalStats(started_at=created, completed_at=created)
    return EvalLog(status="success", eval=spec, results=results, stats=stats, samples=samples)


def _means(policy: PolicyResult) -> list[Any]:
    """The mean of each measure, with the ends of its 95 % interval."""
    from inspect_ai.log import EvalMetric, EvalScore

    return [
        EvalScore(
            name=measure,
            scorer=measure,
            metrics={
                word: EvalMetric(name=word, value=value)
                for word, value in zip(("mean", "low", "high"), estimate, strict=True)
            },
        )
        for measure, estimate in policy.estimates.items()
    ]


def _samples(
    policy: PolicyResult,
    prompts: Mapping[str, Sequence[Mapping[str, Any]]],
    verdicts: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterable[EvalSample]:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    numbers: dict[str, int] = {}
    for place, (prompt, text) in enumerate(zip(policy.rows.prompts, policy.rows.texts, strict=True)):
        number = numbers[prompt] = numbers.get(prompt, -1) + 1
        asked = asked_of(policy.name, verdicts.get(pair_id(policy.name, prompt, number), ()), p="p_a")
        id = digest([policy.name, prompt, number])[:20]
        turns = [
            kinds.get(turn["role"], ChatMessageUser)(content=turn["content"], id=f"{id}-{at}")
            for at, turn in enumerate(prompts.get(prompt) or [{"role": "user", "content": prompt}])
        ]
        answer = ChatMessageAssistant(content=text, id=f"{id}-answer")
        output = ModelOutput.from_content(model=policy.name, content=text)
        output.choices[0].message = answer
        yield EvalSample(
            id=prompt,
            epoch=number + 1,
            uuid=id,
            input=turns,
            target="",
            messages=[*turns, answer],
            output=output,
            scores={
                name: Score(value=column[place], explanation=_said(asked) if name == WIN else None)
                for name, column in policy.rows.measures.items()
                if column[place] is not None
            },
        )


def _said(asked: Iterable[Asked]) -> str | None:
    """A line for each principle: P that this completion is better, by where it was shown."""
    lines = [
        f"{each.principle}: "
        + ", ".join(
            f"shown {place} {answer if isinstance(answer, str) else format(answer, '.3f')}"
            for place, answer in each.answers.items()
        )
        for each in asked
    ]
    return "\n".join(lines) or None
