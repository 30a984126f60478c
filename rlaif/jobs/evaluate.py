"""The stage `evaluate`: held-out prompts and policies in, measures with intervals out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.evaluation import EvaluateConfig
from rlaif.digest import digest
from rlaif.engines.base import Engine
from rlaif.engines.scripted import load_scripted
from rlaif.errors import ConfigError, DataError
from rlaif.files import folder_digest, read_object
from rlaif.io.tables import read_table
from rlaif.io.writers import RowWriter, write_rows, write_text
from rlaif.jobs.asked import warn_of_other_questions
from rlaif.jobs.base import (
    AnyJob,
    Job,
    Outcome,
    Passes,
    check_gaps,
    read_result,
    settings_digest,
    transient_among,
    usable,
    write_refused,
)
from rlaif.jobs.context import RunContext
from rlaif.jobs.estimate import shared
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import Adapters, Device, Lengths, sampled_work
from rlaif.jobs.merging import adapter_of
from rlaif.jobs.monitoring import STATISTICS
from rlaif.jobs.people import PAIRS, pair_rows
from rlaif.jobs.planning import COUNTED, PLACEHOLDER, StagePlan, counter_of, tokens_of
from rlaif.jobs.rewards import model_reward
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.protocols import JudgingProtocol
from rlaif.judging.rubric import Rubric
from rlaif.judging.table import PROTOCOLS, open_judge, open_protocol
from rlaif.models.memory import StageWork
from rlaif.models.probe_files import protocol_of
from rlaif.models.shared_base import SharedBase
from rlaif.report.comparison import evaluation_markdown, evaluation_table
from rlaif.report.markdown import named, quoted
from rlaif.report.shown import Shown
from rlaif.results.evaluation import Evaluation, pair_id
from rlaif.results.monitor import READINGS
from rlaif.results.rows import verdict_row
from rlaif.reward.functions import RewardFunction
from rlaif.reward.rubric import RubricReward
from rlaif.runs.costs import COST, TRAINING, read_cost, write_cost
from rlaif.runs.manifest import Manifest
from rlaif.stages.evaluate import Judging, PolicySource, configured_metrics, evaluate
from rlaif.stages.label import askable
from rlaif.stages.win_rate import telling
from rlaif.types import Comparison, Completion, Message, Prompt

__all__ = ["COMPARISON", "EVALUATION", "MONITORS", "EvaluateJob", "START", "TO_READ", "read_evaluation"]

START = "start"
"""Name of the policy that the others were trained from."""
EVALUATION, COMPARISON = "evaluation.json", "comparison.json"
MONITORS = "monitors.json"
"""What monitors read of the policies' trainings, by the name that a policy has in the report."""
VERDICTS = "verdicts.jsonl"
"""What the judge said of every pair, by principle and in each order."""
TO_READ = 12
"""Prompts whose completions are written out."""


class EvaluateJob(Job[EvaluateConfig]):
    """Held-out prompts and policies in, measures with intervals out: `evaluation.json`, `completions.jsonl`,
    `verdicts.jsonl`, `training.json`."""

    def __init__(self, config: EvaluateConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.prompts = load_prompts(
            config,
            own_split="eval",
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        context.claim_prompts("eval", self.prompts)
        stages = context.recipe.stages[: [stage.name for stage in context.recipe.stages].index(config.name)]
        self.policies = config.policies or tuple(stage.name for stage in stages if stage.trains_policy)
        self.models_of = {stage.name: stage.trained_model for stage in stages}
        self.rewards = [stage.name for stage in stages if stage.stage == "reward"]
        if not self.policies:
            remedy = "train one before it, or name folders in `policies`"
            raise ConfigError(f"stage {config.name!r} has no policy to evaluate", remedy=remedy)
        # What it names is looked for now: a model takes minutes to load.
        for name in self.policies:
            if name not in self.models_of:
                self._adapter(name)
        configured_metrics(config)
        if config.win_rate:
            self._protocol()
        if config.rubric:
            protocol_of(context.model(config.judge), Rubric.name, Rubric.name)
        needs = PROTOCOLS[config.protocol or context.constitution.protocol].needs if config.win_rate else None
        askable(self.prompts, needs, where=config.name, remedy=f"give them a column `{needs}`")
        if config.rubric:
            askable(self.prompts, "rubric", where=config.name, remedy="give them one, or leave `rubric` out")

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        context, names = self.context, _names(self.policies)
        return {
            "settings": settings_digest(
                self.config,
                "prompts",
                "prompt_column",
                "context_column",
                "split",
                "limit",
                "policies",
                "rollout",
            ),
            "prompts": prompts_digest(self.prompts),
            "base": context.bases.get().identity,
            "seed": str(context.seed(self.config)),
            "policies": digest(
                [
                    [names[name], self._base(name).identity, folder_digest(self._adapter(name))]
                    for name in self.policies
                ]
            ),
            "reward": context.reward_digest(self.config, self.config.reward) if self._scored else "",
            "constitution": context.constitution.digest,
            "judge": self._judge_digest(),
            **({"rollout": "served"} if self.config.rollout else {}),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {
            "policies": ", ".join(self.policies),
            "judge": self.context.engines.card(self.context.model(self.config.judge)).label,
        }

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, policies = self.config, 1 + len(self.policies)
        completions = policies * config.samples * len(self.prompts)
        return self.sampling_plan(
            {"prompts": len(self.prompts), "policies": policies, "completions": completions},
            read=policies * len(self.prompts),
            completions=completions,
            new_tokens=config.max_new_tokens,
            at_once=config.rows,
            together=config.samples,
            # The reward, and the KL to the reference, which takes the logits of both.
            passes=Passes(scored=int(self._scored), read=1, logits=2),
            judged=self._judged_tokens() if config.win_rate else 0,
            served=config.rollout is not None,
        )

    def _judged_tokens(self) -> float:
        """About how many tokens the judge reads, what its questions begin alike with read once; none where it
        reads elsewhere."""
        config, recipe = self.config, self.context.recipe
        name = recipe.weights_of(config.judge or recipe.model)
        if name != recipe.model:
            return 0
        counter, judge = counter_of(name), self._open_judge(load_scripted("scripted"))
        duels = [_imagined(prompt, config.max_new_tokens) for prompt in self.prompts[:COUNTED]]
        groups = [list(dict.fromkeys(judge.requests(duel))) for duel in duels]
        once = shared([counter.render(request.messages) for request in group] for group in groups)
        read = tokens_of(counter, [request.messages for group in groups for request in group])
        all_duels = len(self.prompts) * len(self.policies) * (config.judged or config.samples)
        return read * once / len(duels) * all_duels

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, refused = self.context, list[tuple[str, str]]()
        judged = RowWriter(folder / VERDICTS, "jsonl") if self.config.win_rate else nullcontext()
        with self._adapters() as policies, judged as verdicts:
            found = evaluate(
                self.prompts,
                policies,
                start=START,
                config=self.config,
                seed=context.seed(self.config),
                reward=self._reward(),
                rubric=self._rubric(),
                judge=None if verdicts is None else _kept(self._judge(), verdicts),
                messages=context.library.policy,
                progress=context.progress,
                left_out=refused.extend,
                folder=context.work_folder(self.config.name) if self.config.rollout else None,
            )
        rates = [policy.win for policy in found.policies if policy.win is not None]
        unanswered = [transient_among(Counter(rate.invalid_reasons).elements()) for rate in rates]
        gaps = sum(unanswered)
        lost = sum(min(rate.invalid, count) for rate, count in zip(rates, unanswered, strict=True))
        check_gaps(lost, sum(rate.compared for rate in rates), stage=self.config.name)
        write_text(folder / EVALUATION, json.dumps(found.as_dict(), ensure_ascii=False, indent=1) + "\n")
        write_text(folder / "evaluation.md", evaluation_markdown(found))
        write_cost(folder / TRAINING, self._training())
        if monitors := self._monitors():
            write_text(folder / MONITORS, json.dumps(monitors, indent=1) + "\n")
        rows = _completion_rows(found, self.prompts, context.library.policy)
        count = write_rows(folder / "completions.jsonl", rows, "jsonl").rows
        write_text(folder / "samples.md", _side_by_side(found, self.prompts))
        counts = {"prompts": len(self.prompts), "policies": len(policies), "completions": count}
        if refused:
            counts["refused"] = len(refused)
        written = {EVALUATION: 1, "completions.jsonl": count, **write_refused(folder, refused)}
        if verdicts is not None:
            judge = context.engines.card(context.model(self.config.judge)).label
            pairs = pair_rows(found, self.prompts, context.library, judge)
            written[PAIRS] = write_rows(folder / PAIRS, pairs, "jsonl").rows
            written[VERDICTS] = verdicts.rows
        return Outcome(counts=counts, rows=written, gaps=gaps)

    @contextmanager
    def _adapters(self) -> Iterator[dict[str, PolicySource]]:
        """Every policy as a role of its base, for as long as it is measured."""
        names = _names(self.policies)
        sources = {
            name: PolicySource(self._base(name), f"evaluated-{number}")
            for number, name in enumerate(self.policies)
        }
        try:
            for name, (base, role) in sources.items():
                base.load_adapter(role, self._adapter(name))
            yield {
                START: PolicySource(self.context.bases.get()),
                **{names[name]: source for name, source in sources.items()},
            }
        finally:
            for base, role in sources.values():
                if role in base.roles:
                    base.drop_adapter(role)

    def _base(self, name: str) -> SharedBase:
        """The base that a policy is an adapter of: the one that its stage trained, or the recipe's."""
        return self.context.bases.get(self.models_of.get(name))

    def _training(self) -> dict[str, Any]:
        """What training each policy took, by the name it has in the report, where its stage noted it."""
        found = {
            shown: read_cost(self._adapter(name).parent / COST)
            for name, shown in _names(self.policies).items()
        }
        return {name: cost for name, cost in found.items() if cost is not None}

    def _monitors(self) -> dict[str, Any]:
        """What was read along each policy's training, by the name it has in the report, where it was
        watched."""
        found = {shown: _watched(self._adapter(name).parent) for name, shown in _names(self.policies).items()}
        return {name: watched for name, watched in found.items() if watched is not None}

    def _adapter(self, name: str) -> Path:
        folder = self.context.folders.get(name)
        return folder / "adapter" if folder else adapter_of(Path(name))

    @property
    def _scored(self) -> bool:
        return bool(self.config.reward or self.rewards)

    def _reward(self) -> RewardFunction | None:
        return model_reward(self.config, self.config.reward, self.context) if self._scored else None

    def _rubric(self) -> RewardFunction | None:
        context, config = self.context, self.config
        if config.rubric is None:
            return None
        engine = context.engines.get(context.model(config.judge))
        return RubricReward(
            engine, context.library, aggregate=config.rubric, least_share=config.min_label_share
        )

    def _judge(self) -> Judging:
        context, named = self.context, self.context.model(self.config.judge)
        judge = self._open_judge(context.engines.get(named))
        warn_of_other_questions(
            named, self._asking(), context.constitution, context.library, context.progress
        )
        return telling(judge, context.progress)

    def _open_judge(self, engine: Engine) -> Judge:
        context, config, protocol = self.context, self.config, self._asking()
        return open_judge(
            engine,
            protocol,
            usable(context, protocol.half),
            principles=config.principles,
            seed=context.seed(config),
            progress=context.progress,
        )

    def _asking(self) -> JudgingProtocol:
        return open_protocol(
            self._protocol(),
            library=self.context.library,
            constitution=self.context.constitution,
            least_share=self.config.min_label_share,
        )

    def _judge_digest(self) -> str:
        if not self.config.win_rate and self.config.rubric is None:
            return ""
        card = self.context.engines.card(self.context.model(self.config.judge))
        asked = PROTOCOLS[self._protocol()]
        said = [card.name, card.identity(), self.config.protocol, asked.digest(self.context.library)]
        if self.config.rubric:
            said.append(Rubric.digest(self.context.library))
        return digest(said)

    def _protocol(self) -> str:
        config, context = self.config, self.context
        return protocol_of(context.model(config.judge), config.protocol, context.constitution.protocol)

    def summary(self, folder: Path, manifest: Manifest) -> Sequence[Shown]:
        """See `Job`."""
        return [evaluation_table(read_evaluation(folder / EVALUATION))]

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        sampling = sampled_work(config.rows, lengths.prompts(config.name), config.max_new_tokens)
        return sampling._replace(
            read_tokens=device.tokens, read_logits=device.asked if config.win_rate or config.rubric else 0
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        policies = self.config.policies or [
            stage.name for stage in self.context.before(self.config) if stage.trains_policy
        ]
        return Adapters((), (*self.context.reward_adapters(self.config), *policies))


def _watched(folder: Path) -> dict[str, Any] | None:
    """The readings of a stage and what they say; `None` where nothing watched."""
    if not (folder / READINGS).is_file():
        return None
    said = read_result(folder / STATISTICS)["monitor"]
    return {"readings": [dict(row.values) for row in read_table(folder / READINGS).rows], "statistics": said}


def _names(policies: Sequence[str]) -> dict[str, str]:
    """What each policy is called in the report: a stage's own name, or as few of the last parts of a folder's
    path as tell it from the others."""
    parts = {
        policy: [part for part in Path(policy).parts if part not in ("adapter", "/")] or [policy]
        for policy in policies
    }
    for count in range(1, max(map(len, parts.values())) + 1):
        names = {policy: "/".join(each[-count:]) for policy, each in parts.items()}
        if len({START, *names.values()}) > len(names):
            return names
    raise ConfigError("the same policy is named twice", remedy="name each policy once")


def _kept(judge: Judging, verdicts: RowWriter) -> Judging:
    """`judge`, whose verdicts are written as they come, under the `pair_id` of their pair; `a` is the
    policy's completion."""

    def asked(comparisons: Sequence[Comparison]) -> Iterator[Judged]:
        for judged in judge(comparisons):
            policy, start = judged.comparison.a, judged.comparison.b
            id = pair_id(policy.model, judged.comparison.prompt.id, start.index)
            for verdict in judged.verdicts:
                verdicts.write({**verdict_row(verdict), "comparison_id": id})
            yield judged

    return asked


def _imagined(prompt: Prompt, tokens: int) -> Comparison:
    """Two completions as long as they may get, for counting."""
    a, b = (
        Completion(
            id=f"{prompt.id}/{index}",
            prompt_id=prompt.id,
            index=index,
            text=f"{PLACEHOLDER * tokens}{index}",
            finish="length",
            model="",
        )
        for index in (0, 1)
    )
    return Comparison(prompt, a, b)


def _completion_rows(
    found: Evaluation, prompts: Sequence[Prompt], messages: Callable[[Prompt], Sequence[Message]]
) -> list[dict[str, Any]]:
    """One row per completion, with what the policy read, and its measures."""
    read = {prompt.id: [turn.as_dict() for turn in messages(prompt)] for prompt in prompts}
    return [
        {
            "policy": policy.name,
            "prompt_id": prompt,
            "prompt": read[prompt],
            "completion": text,
            "measures": {name: values[number] for name, values in policy.rows.measures.items()},
        }
        for policy in found.policies
        for number, (prompt, text) in enumerate(zip(policy.rows.prompts, policy.rows.texts, strict=True))
    ]


def _side_by_side(found: Evaluation, prompts: Sequence[Prompt]) -> str:
    """The first completion of every policy to the same few prompts."""
    asked = {prompt.id: prompt.messages[-1].content for prompt in prompts}
    parts = ["# Policies side by side\n"]
    for id in list(asked)[:TO_READ]:
        parts.append(f"## {named(id)}\n\n{quoted(asked[id])}")
        for policy in found.policies:
            text = next(
                (
                    text
                    for prompt, text in zip(policy.rows.prompts, policy.rows.texts, strict=True)
                    if prompt == id
                ),
                None,
            )
            if text is not None:
                parts.append(f"**{named(policy.name)}**\n\n{quoted(text)}")
    return "\n".join(parts)


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file.

    Raises:
        DataError: It is missing or damaged.
    """
    remedy = "name a file that `rlaif evaluate` wrote"
    return Evaluation.from_dict(
        read_object(path, error=DataError, what="the evaluation", remedy=remedy), where=str(path)
    )
