"""How long prompts and rows of a run's stages are, and what that means for a pass: what memory plans are made
of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch

from rlaif.config.finetune import BestOfKConfig, DpoConfig, SftConfig
from rlaif.config.judge import JudgeConfig
from rlaif.config.labelling import BaseStage, LabelConfig
from rlaif.config.moderation import ModerationConfig
from rlaif.config.on_policy import OnPolicyConfig
from rlaif.engines.base import TokenCount
from rlaif.engines.chat import ChatFormat
from rlaif.engines.hf import CPU_ROWS, CPU_TOKENS, GPU_ROWS, GPU_TOKENS
from rlaif.io.tables import read_table
from rlaif.jobs.context import RunContext
from rlaif.jobs.merging import stage_base
from rlaif.models.heap import rounded
from rlaif.models.memory import StageWork
from rlaif.models.open import open_token_count
from rlaif.rl.episodes import MIN_PREFIX, common_prefix
from rlaif.types import Message, Prompt

__all__ = [
    "MICRO_TOKENS",
    "QUESTION",
    "TEMPLATE",
    "Adapters",
    "Device",
    "Lengths",
    "sampled_work",
    "trained_sampling",
]

LOOKED_AT = 64
"""Texts, the longest in characters, whose tokens are counted."""
MICRO_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""What the reward stage takes where its settings leave it open."""
QUESTION = 16
"""Tokens at least that a judge's question shares with no other: so many tokens of a pass for one row of
logits."""
TEMPLATE = 96
"""Tokens of a principle and of the words around it in a request to critique or to revise, about."""


class PlannedJob(Protocol):
    """A job, as far as lengths go."""

    @property
    def config(self) -> BaseStage:
        """The stage's settings."""
        ...

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What the stage samples for, if it samples."""
        ...


class Adapters(NamedTuple):
    """Names of the adapters that learn in a stage, and of those that it only reads, with the rank of each."""

    trained: tuple[str, ...]
    read: tuple[str, ...]
    rank: int = 16


class Device(NamedTuple):
    """What a device does at once.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        tokens: Of one pass without gradients.
        rows: Sampled side by side by an engine.
        ranks: Processes that share the work.
    """

    kind: str
    tokens: int
    rows: int
    ranks: int = 1

    @classmethod
    def of(cls, device: torch.device, *, ranks: int = 1) -> Device:
        """Of a torch device."""
        return (
            cls(device.type, CPU_TOKENS, CPU_ROWS, ranks)
            if device.type == "cpu"
            else cls(device.type, GPU_TOKENS, GPU_ROWS, ranks)
        )

    @property
    def asked(self) -> int:
        """Questions of a judge in one pass, each with a row of logits."""
        return self.tokens // QUESTION


def sampled_work(rows: int, prompt: int, new: int) -> StageWork:
    """Sampling so many rows side by side, each of a prompt and new tokens."""
    return StageWork(sampled_rows=rows, row_tokens=prompt + new, new_tokens=new)


def trained_sampling(
    config: OnPolicyConfig | BestOfKConfig,
    lengths: Lengths,
    device: Device,
    *,
    rows: int,
    micro: int,
    watched: Sequence[Prompt] = (),
) -> StageWork:
    """Sampling from a policy and training on what it sampled.

    Args:
        rows: Sampled side by side.
        micro: Rows of one pass with gradients.
        watched: Prompts that are sampled for besides, and not trained on.
    """
    prompt, judged = lengths.prompts(config.name), bool(config.answering_models("judge"))
    shared = 0 if config.gradient_checkpointing else lengths.shared(config.name)
    longest = max(prompt, lengths.longest(config.name, watched))
    return sampled_work(rows, longest, config.max_new_tokens)._replace(
        micro_tokens=shared + micro * rounded(prompt - shared + config.max_new_tokens),
        logit_tokens=micro * config.max_new_tokens,
        checkpointing=config.gradient_checkpointing,
        read_tokens=device.tokens,
        read_logits=device.asked if judged else 0,
    )


def _longest(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those that may have the most tokens."""
    return sorted(prompts, key=lambda prompt: -sum(len(message.content) for message in prompt.messages))[
        :LOOKED_AT
    ]


class Lengths:
    """Longest prompts and rows, in tokens."""

    def __init__(self, jobs: Sequence[PlannedJob], context: RunContext) -> None:
        self.jobs = {job.config.name: job for job in jobs}
        self.context = context

    def prompts(self, stage: str) -> int:
        """The longest prompt of a stage, as the policy reads it."""
        return self.longest(stage, self.jobs[stage].prompts)

    def longest(self, stage: str, prompts: Sequence[Prompt]) -> int:
        """The longest of `prompts`, as the policy of a stage reads it."""
        counter = _counter_of(self._model(stage))
        return max(
            (counter.count(self.context.library.policy(prompt)) for prompt in _longest(prompts)), default=0
        )

    def shared(self, stage: str) -> int:
        """Tokens that the prompts of a stage have in common at their start, which a pass computes once."""
        form = _counter_of(self._model(stage))
        if not isinstance(form, ChatFormat):
            return 0
        ids = form.encode(
            [
                form.render(self.context.library.policy(prompt))
                for prompt in _longest(self.jobs[stage].prompts)
            ]
        )
        found = common_prefix(ids) if len(ids) > 1 else 0
        return found if found >= MIN_PREFIX else 0

    def count(self, stage: str) -> int:
        """How many prompts a stage has."""
        return len(self.jobs[stage].prompts)

    def _model(self, stage: str) -> str:
        return stage_base(self.jobs[stage].config, self.context.recipe)

    def rows(self, config: SftConfig | DpoConfig | JudgeConfig | ModerationConfig) -> int:
        """The longest row that a stage learns from: of its files, or as long as its source may make one."""
        files = [file if isinstance(file, str) else file.file for file in config.files]
        found = [self._file(file, config) for file in files]
        if config.input or not files:
            found.append(self._source(config))
        return max(found)

    def _file(self, file: str, config: BaseStage) -> int:
        rows = sorted((row.values for row in read_table(file).rows), key=lambda row: -len(str(row)))[
            :LOOKED_AT
        ]
        counter = _counter_of(stage_base(config, self.context.recipe))
        return max((counter.count(messages) for row in rows for messages in _conversations(row)), default=0)

    def _source(self, config: SftConfig | DpoConfig | JudgeConfig | ModerationConfig) -> int:
        kind = "revise" if isinstance(config, SftConfig) else "label"
        source: Any = self.jobs[self.context.earlier(config, kind, config.input)].config
        if isinstance(source, LabelConfig):
            if source.responses:
                return self._file(source.responses, config)
            source = self.jobs[self.context.earlier(source, "sample", source.input)].config
        return self.prompts(source.name) + int(source.max_new_tokens)


def _conversations(row: Mapping[str, Any]) -> Iterator[list[Message]]:
    """The texts of a row, each as one conversation; what cannot be read is found when the stage reads it."""
    prompt = row.get("prompt") or row.get("messages") or ()
    for name in ("completion", "chosen", "rejected"):
        turns = [turn for turn in [*prompt, *(row.get(name) or ())] if isinstance(turn, dict)]
        if turns:
            yield [Message(role="user", content="\n".join(str(turn.get("content", "")) for turn in turns))]


@lru_cache(maxsize=8)
def _counter_of(model: str) -> TokenCount:
    return open_token_count(model)
