"""The stage `revise`: prompts in, chains of critiques and revisions out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rlaif.config import ReviseConfig
from rlaif.digest import digest
from rlaif.io.writers import write_rows, write_text
from rlaif.jobs.base import (
    BUILTIN_LIMIT,
    TO_READ,
    AnyJob,
    Job,
    Outcome,
    settings_digest,
    transient_among,
    usable,
)
from rlaif.jobs.context import RunContext
from rlaif.jobs.inputs import load_prompts, prompts_digest
from rlaif.jobs.lengths import TEMPLATE, Device, Lengths, sampled_work
from rlaif.jobs.planning import PLACEHOLDER, StagePlan, counter_of, estimated_seconds, tokens_of
from rlaif.models.devices import pick_device
from rlaif.models.memory import StageWork
from rlaif.report.samples import revisions_markdown, spread
from rlaif.results.revisions import Revision
from rlaif.results.rows import revision_row, sft_rows
from rlaif.stages.revise import revise
from rlaif.stages.sample import check_refused_rate

__all__ = ["ReviseJob"]


class ReviseJob(Job[ReviseConfig]):
    """Prompts in, chains of critique and revision out: `revisions.jsonl`, and `sft.jsonl` to fine-tune on."""

    def __init__(self, config: ReviseConfig, context: RunContext) -> None:
        super().__init__(config, context)
        self.prompts = load_prompts(
            config,
            own_split="sft",
            own_limit=BUILTIN_LIMIT,
            seed=context.seed(config),
            progress=context.progress,
            left_out=partial(context.leave_out, config.name),
        )
        self.policy = context.policy(config.policy)
        self._weights = context.recipe.weights_of(context.model(config.policy))
        self.constitution = usable(context, "critique_revision")
        context.claim_prompts("sft", self.prompts)

    def key_parts(self) -> dict[str, str]:
        """See `Job`."""
        card = self.context.bases.policy(self.policy).card
        return {
            "settings": settings_digest(
                self.config, "policy", "prompts", "prompt_column", "context_column", "split", "limit"
            ),
            "prompts": prompts_digest(self.prompts),
            "policy": digest([self.context.policy_name(self.config.policy), card.identity()]),
            "constitution": self.context.constitution.digest,
            "templates": self.context.library.digest("policy", "critique", "revise"),
            "seed": str(self.context.seed(self.config)),
        }

    def models(self) -> dict[str, str]:
        """See `Job`."""
        return {"policy": self.context.bases.policy(self.policy).card.label}

    def execute(self, folder: Path) -> Outcome:
        """See `Job`."""
        context, seed = self.context, self.context.seed(self.config)
        revisions = revise(
            self.prompts,
            policy=context.bases.policy(self.policy),
            library=context.library,
            constitution=self.constitution,
            config=self.config,
            seed=seed,
            progress=context.progress,
        )
        reasons = [revision.failed for revision in revisions if revision.failed]
        check_refused_rate(reasons, len(revisions), self.config.max_refused, what="chains")
        common = {
            "policy": context.bases.policy(self.policy).card.label,
            "constitution": context.constitution.name,
            "constitution_digest": context.constitution.digest,
            "seed": seed,
        }
        rows = [revision_row(revision) for revision in revisions]
        sft = [row for revision in revisions for row in sft_rows(revision, context.library, common)]
        written = {
            "revisions.jsonl": write_rows(folder / "revisions.jsonl", rows, "jsonl").rows,
            "sft.jsonl": write_rows(folder / "sft.jsonl", sft, "jsonl").rows,
        }
        write_text(folder / "samples.md", revisions_markdown(spread(rows, TO_READ)))
        return Outcome(counts=self._counts(revisions, len(sft)), rows=written, gaps=transient_among(reasons))

    def _counts(self, revisions: list[Revision], sft: int) -> dict[str, int]:
        texts = [step.revision for revision in revisions for step in revision.rounds]
        return {
            "prompts": len(self.prompts),
            "revisions": len(texts),
            "empty": texts.count(""),
            "sft_rows": sft,
            "repeated": len([text for text in texts if text]) - sft,
            "failed_chains": sum(bool(each.failed) for each in revisions),
        }

    def dry_run(self, earlier: Mapping[str, AnyJob]) -> StagePlan:
        """See `Job`."""
        config, context = self.config, self.context
        library, counter = context.library, counter_of(self._weights)
        text, principle = PLACEHOLDER * config.max_new_tokens, self.constitution.principles[0]
        answers = [library.policy(prompt) for prompt in self.prompts]
        critiques = [library.critique(prompt, text, principle) for prompt in self.prompts]
        revisions = [library.revise(prompt, text, text, principle) for prompt in self.prompts]
        read = tokens_of(counter, answers) + config.rounds * (
            tokens_of(counter, critiques) + tokens_of(counter, revisions)
        )
        calls = len(answers) * (1 + 2 * config.rounds)
        write = calls * config.max_new_tokens
        return StagePlan(
            name=config.name,
            kind=config.stage,
            model=context.model(config.policy),
            read=read,
            write=write,
            seconds=estimated_seconds(self._weights, context, read, write, rows=self._rows()),
            counts={"prompts": len(answers), "rounds": config.rounds, "completions": calls},
            example={"critique": counter.render(critiques[0]), "revise": counter.render(revisions[0])},
        )

    def _rows(self) -> int:
        """Chains that are sampled for side by side."""
        return max(1, min(len(self.prompts), Device.of(pick_device(self.context.recipe.device)).rows))

    def memory_work(self, lengths: Lengths, device: Device) -> StageWork | None:
        """See `Job`."""
        config = self.config
        # What is revised is quoted with its critique: three completions beside the prompt, and the template.
        quoted = lengths.prompts(config.name) + 2 * config.max_new_tokens + TEMPLATE
        return sampled_work(min(device.rows, lengths.count(config.name)), quoted, config.max_new_tokens)
