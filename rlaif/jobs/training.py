"""The training stages as jobs of a run: reward model and PPO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.finetune import DpoConfig, SftConfig
from rlaif.config.labelling import BaseStage
from rlaif.config.ppo import PpoConfig
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.digest import digest
from rlaif.errors import DataError, ModelError, Problem
from rlaif.io.tables import read_table
from rlaif.io.training_rows import demonstration_of, preference_of
from rlaif.io.writers import RowWriter, write_rows, write_text
from rlaif.jobs.base import Outcome, settings_digest, write_refused
from rlaif.jobs.cards import judges_of, reward_judges, write_card
from rlaif.jobs.context import Context
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.rewards import check_rewards, open_reward, rewards_digest, with_curve_named
from rlaif.jobs.tracking import Trackers, check_trackers
from rlaif.models.cost import peak_memory
from rlaif.models.shared_base import SharedBase
from rlaif.report.training import ppo_markdown, reward_markdown, step_line
from rlaif.results.preferences import PreferencePair, pairs_from_rows
from rlaif.reward.files import save_reward_model
from rlaif.reward.model import TurnFormat
from rlaif.rl.ppo import StepReport
from rlaif.runs.costs import COST, write_cost
from rlaif.runs.steps import StepLog
from rlaif.stages.ppo import POLICY, PtxRow, ppo_cost, ptx_rows, train_ppo
from rlaif.stages.reward import train_reward
from rlaif.types import Message

__all__ = ["PpoJob", "RewardJob", "label_files", "pairs_digest", "read_demonstrations", "read_pairs", "renderable", "skipper"]

SkippingStage = RewardConfig | DpoConfig | SftConfig | PpoConfig
SAMPLES_KEPT = 4
"""Completions of each PPO step that are written out, to read how the policy changes."""


class RewardJob:
    """Preferences in, a reward model out: `model/`, `report.json`, `metrics.jsonl`."""

    def __init__(self, config: RewardConfig, context: Context) -> None:
        self.config = config
        self.context = context
        self.base = context.model(config.model)

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """What is learned from: the label stage's preferences and the files', each with its weight."""
        found: list[PreferencePair] = []
        for file in self._files():
            found += read_pairs(
                file.file, weight=file.weight, hard=self.config.labels == "hard",
                skipped=skipper(self.config, file.file, self.context), note=self.context.progress.note,
            )
        return found

    def _files(self) -> Iterator[PreferenceFile]:
        return label_files(self.config, self.config.input, self.config.files, self.context)

    @cached_property
    def human(self) -> list[PreferencePair]:
        """Pairs that people labelled, for the report."""
        if not self.config.human:
            return []
        found = read_pairs(
            self.config.human, skipped=skipper(self.config, self.config.human, self.context), note=self.context.progress.note,
        )
        learned = {_content(pair) for pair in self.pairs}
        if shared := sum(_content(pair) in learned for pair in found):
            raise DataError(
                f"{shared} of {len(found)} pairs of `human` are among the preferences that are learned from", where=self.config.human,
                remedy="give pairs that were held out: an accuracy on what was learned says nothing",
            )
        return found

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(self.config, "input", "files", "human", "model"),
            "preferences": pairs_digest(self.pairs),
            "human labels": pairs_digest(self.human),
            "base": self.context.base(self.base).identity, "seed": str(self.context.seed(self.config)),
            "constitution": self.context.constitution.digest,
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"reward": f"{self.base}@{self.context.base(self.base).identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context = self.context
        pairs, human = (renderable(each, context.base(self.base), self.config, context) for each in (self.pairs, self.human))
        with RowWriter(folder / "metrics.jsonl", "jsonl") as metrics:
            result = train_reward(
                pairs, base=context.base(self.base), config=self.config, seed=context.seed(self.config), role=self.config.name,
                human=human, constitution=context.constitution.digest, progress=context.progress,
                log=lambda step: metrics.write(step._asdict()),
            )
        parts, judge = self.parts(), judges_of(file.file for file in self._files())
        note = {"constitution": context.constitution.name, "preferences": parts["preferences"], "judge": judge}
        save_reward_model(result.model, folder / "model", probes=result.probes, note=note)
        context.rewards[self.config.name] = result.model
        report = result.report.as_dict()
        kept = report["held_out"][report["kept"]]
        results = {name: kept[name] for name in ("pairs", "accuracy", "low", "high", "loss", "ece")}
        write_card(
            folder / "model", self.config, context, base=context.base(self.base), parts=parts, judge=judge, results=results,
        )
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(folder / "samples.md", reward_markdown(report))
        counts = {"pairs": len(pairs), "human_pairs": len(human), "steps": len(result.steps)}
        return Outcome(counts=counts, rows={"report.json": 1, "metrics.jsonl": metrics.rows})


class PpoJob:
    """Prompts and a reward in, a policy out: `adapter/`, `metrics.jsonl`, `completions.jsonl`."""

    def __init__(self, config: PpoConfig, context: Context) -> None:
        self.config = config
        self.context = context
        check_rewards(config.reward, config, context)
        check_trackers(config.trackers)
        self.prompts = load_prompts(
            config, own_split="rl", seed=context.seed(config), progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        context.claim_prompts("rl", self.prompts)

    def parts(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "settings": settings_digest(
                self.config, "prompts", "prompt_column", "context_column", "split", "limit", "trackers", "checkpoint_every",
                "max_refused",
            ),
            "prompts": prompts_digest(self.prompts), "base": self.context.base().identity,
            "rewards": rewards_digest(self.config.reward, self.config, self.context),
            "templates": self.context.library.digest("policy"), "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": f"{self.context.recipe.model}@{self.context.base().identity}"}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, base = self.context, self.context.base()
        reward = open_reward(self.config.reward, self.config, context)
        context.progress.begin(f"PPO, {self.config.steps} steps of {self.config.episodes} episodes", self.config.steps)
        work = context.claim_work(self.config.name, self.parts())
        metrics, samples = StepLog(work / "metrics.jsonl"), StepLog(work / "completions.jsonl")
        try:
            with self._trackers() as trackers:
                result = train_ppo(
                    self.prompts, base=base, reward=reward, config=self.config, seed=context.seed(self.config),
                    messages=context.library.policy, ptx=self._ptx(), on_step=lambda step: self._told(step, metrics, trackers),
                    on_rollout=lambda report: _keep_samples(report, samples), checkpoint_folder=work,
                )
            if not result.steps:
                raise ModelError(
                    f"PPO ended before its first update: {result.stopped}", where=self.config.name,
                    remedy="lower the learning rate, raise kl_limit or the KL penalty, or look at the reward (samples, metrics)",
                )
            base.save_adapter(POLICY, folder / "adapter")
            write_card(
                folder / "adapter", self.config, context, base=base, parts=self.parts(), results=_last(metrics.rows),
                judge=reward_judges(self.config.reward, self.config, context),
            )
        finally:
            if POLICY in base.roles:
                base.drop_adapter(POLICY)
        if result.stopped:
            context.progress.note(f"{self.config.name}: stopped early at {result.stopped}")
        cost = replace(with_curve_named(ppo_cost(metrics.rows), self.config, context), peak_bytes=peak_memory(base.device))
        write_cost(folder / COST, cost.as_dict())
        write_text(folder / "samples.md", ppo_markdown(metrics.rows))
        write_rows(folder / "metrics.jsonl", metrics.rows, "jsonl")
        write_rows(folder / "completions.jsonl", samples.rows, "jsonl")
        episodes = result.steps * self.config.episodes
        counts = {
            "prompts": len(self.prompts), "refused": len(result.refused), "steps": result.steps, "episodes": episodes,
            "tokens": cost.tokens,
        }
        rows = {"metrics.jsonl": len(metrics.rows), "completions.jsonl": len(samples.rows)}
        rows |= write_refused(folder, result.refused)
        if result.refused:
            first = ": ".join(result.refused[0])
            context.progress.note(f"{self.config.name}: {len(result.refused)} prompts left out, the first: {first}")
        return Outcome(counts=counts, rows=rows)

    def _ptx(self) -> Sequence[PtxRow]:
        """The rows of PPO-ptx, if the settings ask for them: of a revise stage, or a file."""
        if self.config.ptx is None:
            return ()
        named = self.config.ptx.data
        source = self.context.folders[named] / "sft.jsonl" if named in self.context.folders else named
        skipped = skipper(self.config, str(source), self.context)
        rows = read_demonstrations(str(source), skipped=skipped, note=self.context.progress.note)
        return ptx_rows(self.context.base(), [_conversation(row) for row in rows])

    def _trackers(self) -> Trackers:
        """Open for the run; what they write stays in the run's folder, beside the stages."""
        config = self.config.model_dump(mode="json")
        return Trackers(self.config.trackers, project=self.context.recipe.name, folder=self.context.path / "tracking", config=config)

    def _told(self, step: Mapping[str, Any], metrics: StepLog, trackers: Trackers) -> None:
        metrics.add(step)
        trackers.log(step)
        self.context.progress.note(f"{self.config.name}: {step_line(step, self.config.steps)}")
        self.context.progress.advance()


def _content(pair: PreferencePair) -> tuple[object, ...]:
    """What is compared, whoever won."""
    return pair.group, *sorted((pair.chosen, pair.rejected))


def skipper(config: SkippingStage, source: str, context: Context) -> Callable[[Sequence[Problem]], None] | None:
    """What is done about rows that cannot be learned from: told, counted and left out where the settings say so, else an error."""
    def tell(problems: Sequence[Problem]) -> None:
        context.leave_out(config.name, source, len(problems))
        if problems:
            what = f"{source}: {len(problems)} rows are left out (skip_bad_rows)"
            context.progress.note(f"{config.name}: {what}; the first: {problems[0]}")

    return tell if config.skip_bad_rows else None


def renderable(
    pairs: Sequence[PreferencePair], base: SharedBase, config: RewardConfig | DpoConfig, context: Context
) -> list[PreferencePair]:
    """The pairs whose prompt the chat template takes; the others are bad rows like any others.

    Raises:
        DataError: The settings do not allow to leave them out, or there are no others.
    """
    refused = TurnFormat(base).refusals([pair.conversation(pair.chosen) for pair in pairs])
    problems = [Problem(said, where=f"{pairs[at].source or 'preferences'}, {pairs[at].id}") for at, said in refused.items()]
    good = [pair for at, pair in enumerate(pairs) if at not in refused]
    skipped = skipper(config, "the chat template", context)
    if problems and good and skipped is not None:
        skipped(problems)
    elif problems:
        raise DataError(
            f"{len(problems)} of {len(pairs)} preferences cannot be trained on", problems=problems[:20], where=config.name,
            remedy="correct or remove them, or go on without them: --skip-bad-rows (skip_bad_rows: true)",
        )
    return good


def read_pairs(
    source: str, *, weight: float = 1.0, hard: bool = False, skipped: Callable[[Sequence[Problem]], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[PreferencePair]:
    """Preferences from a file or a hub dataset.

    Args:
        skipped: Told of rows that cannot be read or learned from, which are then left out; without it they are an error.
        note: Told what else the reader noticed.

    Raises:
        DataError: It cannot be read, or has rows that cannot be trained on; all are listed.
    """
    rows, places, problems = read_rows(source, preference_of, note=note)
    bad = [*problems]
    if problems and (skipped is None or not rows):
        raise _unreadable(source, problems, good=len(rows))
    pairs = pairs_from_rows(
        rows, source=source, weight=weight, hard=hard, skipped=bad.extend if skipped else None, places=places,
    )
    if skipped is not None:
        skipped(bad)
    return pairs


def read_demonstrations(
    source: str, *, skipped: Callable[[Sequence[Problem]], None] | None = None, note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows to imitate from a file or a hub dataset, with `prompt` and `completion` as lists of messages.

    Args:
        skipped, note: As for `read_pairs`.

    Raises:
        DataError: It cannot be read, or has rows that there is nothing to learn from; they are listed.
    """
    rows, places, problems = read_rows(source, demonstration_of, note=note)
    empty = [not row["completion"][-1]["content"].strip() for row in rows]
    problems += [Problem("the completion is empty", where=place) for place, bare in zip(places, empty, strict=True) if bare]
    good = [row for row, bare in zip(rows, empty, strict=True) if not bare]
    if problems and (skipped is None or not good):
        raise _unreadable(source, problems, good=len(good))
    if skipped is not None:
        skipped(problems)
    return good


def _unreadable(source: str, problems: Sequence[Problem], *, good: int) -> DataError:
    what = f"{len(problems)} of {good + len(problems)} rows cannot be learned from"
    remedy = "correct or remove them, or go on without them: --skip-bad-rows (skip_bad_rows: true)"
    return DataError(what, where=source, problems=problems[:20], remedy=remedy if good else "correct them, or name another file")


class ReadRows(NamedTuple):
    """Rows in our form, where each stands, and a problem for each that cannot be brought into it."""

    rows: list[dict[str, Any]]
    places: list[str]
    problems: list[Problem]


def read_rows(
    source: str, form: Callable[[Mapping[str, Any]], dict[str, Any]], *, note: Callable[[str], None] | None,
) -> ReadRows:
    """The rows of a file or a hub dataset, each brought into our form."""
    table = read_table(source)
    if note is not None:
        for line in table.notes:
            note(f"{source}: {line}")
    found = ReadRows(rows=[], places=[], problems=list(table.problems))
    for row in table.rows:
        try:
            found.rows.append(form(row.values))
        except DataError as error:
            found.problems.append(Problem(error.what, where=row.where, remedy=error.remedy))
        else:
            found.places.append(row.where)
    return found


def label_files(config: BaseStage, named: str | None, files: Sequence[PreferenceFile], context: Context) -> Iterator[PreferenceFile]:
    """The preferences of the label stage that `config` reads from, and the files beside or instead of it."""
    if named or not files:
        folder = context.folder_of(config, "label", named)
        yield PreferenceFile(file=str(next(path for path in sorted(folder.iterdir()) if path.stem == "preferences")))
    yield from files


def pairs_digest(pairs: Sequence[PreferencePair]) -> str:
    """Digest of all that the pairs say, wherever they lie."""
    return digest([repr(replace(pair, source="")) for pair in pairs])


def _keep_samples(report: StepReport, samples: StepLog) -> None:
    for row, score in list(zip(report.episodes.rows, report.scores.total, strict=True))[:SAMPLES_KEPT]:
        samples.add({
            "step": report.metrics["step"], "prompt_id": row.prompt.id,
            "prompt": [message.as_dict() for message in row.prompt.messages], "completion": row.completion.text, "score": score,
        })


def _last(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the last step that do not depend on the clock."""
    if not history:
        return {}
    return {name: value for name, value in history[-1].items() if not name.startswith("seconds/")}


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    """A demonstration as one conversation."""
    return [Message(role=turn["role"], content=turn["content"]) for turn in (*row["prompt"], *row["completion"])]
