"""The settings of the stages: one frozen, typed object each, with a line of documentation under every
field."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rlaif.config.directives import DirectiveSettings
from rlaif.config.jury import JudgeSeat, NamedJudges, check_seats, seats_of
from rlaif.config.protocol import OneOfTheProtocols, ProtocolName, known_protocols
from rlaif.config.rollout import AskedRollout
from rlaif.config.settings import SettingNotice, Settings, refuse_idle

__all__ = [
    "LEAST_LABEL_SHARE",
    "AuditConfig",
    "BaseStage",
    "GenerationSettings",
    "LabelConfig",
    "LabelShare",
    "PromptFilter",
    "PromptSettings",
    "ProtocolName",
    "ReviseConfig",
    "RubricAggregate",
    "RubricConfig",
    "SampleConfig",
    "ServerConfig",
    "SettingNotice",
    "Settings",
    "Split",
    "refuse_idle",
]

RESERVED = frozenset({"superseded", "tracking", "merged", "run", "recipe"})
"""Names in a run's folder that are not of stages."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LabelShare = Annotated[float, Field(ge=0, lt=1)]
"""Least probability that the two labels of a verdict hold together."""
LEAST_LABEL_SHARE = 0.005
RubricAggregate = Literal["mean", "min", "all-pass"]
"""How the answers to a rubric's criteria become a score."""
Split = Literal["sft", "label", "rl", "eval", "all"]


class BaseStage(Settings):
    """What every stage has, and what a run asks of its settings."""

    stage: str
    """The kind of stage."""

    name: str = Field(default="", pattern=r"^[a-z0-9]?[a-z0-9_-]*$")
    """Folder of the stage in the run, and how later stages refer to it; the kind of stage when left out."""

    seed: int | None = None
    """Seed of this stage; the recipe's when left out."""

    trains_policy: ClassVar[bool] = False
    """Whether the stage leaves a policy, which a later `evaluate` measures."""

    holds_base: ClassVar[bool] = False
    """Whether the stage works on the resident base, with adapters."""

    @property
    def trained_model(self) -> str | None:
        """The model that the stage trains an adapter of; `None` for the recipe's."""
        return None

    def main_model(self, default: str) -> str | None:
        """The model that the stage mainly runs, given the recipe's; `None` where it runs none."""
        return self.trained_model or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        """Models that answer or judge in the stage, given the recipe's."""
        return ()

    @field_validator("name")
    @classmethod
    def _is_no_other_folder(cls, name: str) -> str:
        if name in RESERVED or name.startswith("-"):
            raise ValueError(
                f"a stage cannot be named {name!r}: a run keeps something else under that name; choose "
                "another"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _name_after_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            return {**values, "name": str(cls.model_fields["stage"].default).replace("_", "-")}
        return values


class PromptSettings(Settings):
    """Where a stage takes its prompts from."""

    prompts: str = "builtin"
    """`builtin`, `builtin:TAG`, a file (JSONL, JSON, CSV, TSV, Parquet, TXT), or a Hugging Face dataset id
    `org/name[:split]`."""

    prompt_column: str = "prompt"
    """Column that holds the prompt: text, or a list of chat messages that ends with the user's turn."""

    context_column: str = "context"
    """Column that holds retrieved documents, if there is one."""

    split: Split | None = None
    """Part of the prompts to take: four disjoint parts, divided by a hash of what is asked. When left out,
    the stage's own part of the built-in prompts, and all of any others."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """How many prompts to draw. When left out, all of them; `sample` and `revise` draw 24 of the built-in
    ones."""

    skip: Annotated[int, Field(ge=0)] = 0
    """Prompts of the draw that are passed over first, as an earlier run used them; `limit` is then drawn in
    full or refused."""

    skip_bad_rows: bool = False
    """Go on without rows that cannot be read; they are counted and listed. Otherwise one bad row stops the
    run."""


def _is_shard(text: str) -> str:
    number, slash, count = text.partition("/")
    if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise ValueError(f"{text!r} is not a shard: write 1/4 for the first of four")
    if not 1 <= int(number) <= int(count):
        raise ValueError(
            f"{text!r} is not a shard: shards of {int(count)} are 1/{int(count)} to {int(count)}/{int(count)}"
        )
    return f"{int(number)}/{int(count)}"


Shard = Annotated[str, AfterValidator(_is_shard), Field(max_length=20)]
"""One of N equal parts of the work, `I/N`, counted from 1."""


class GenerationSettings(Settings):
    """How a policy samples."""

    policy: str | None = None
    """Model that answers: a hub id, a folder, a GGUF file or an alias; or a policy: an earlier stage that
    trained one, or the folder of its adapter. The recipe's `model` when left out."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 96
    """Longest completion in tokens."""

    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Logits are divided by it; 0 means greedy."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens that holds this probability; 1 keeps the model's own
    distribution."""


class ServerConfig(Settings):
    """Where a model named `openai:MODEL` is served, and how much may be spent on it."""

    base_urls: tuple[str, ...] = ()
    """Addresses of OpenAI-compatible servers that share the load; `http://localhost:8000/v1` when there are
    none."""

    api_key_env: str = ""
    """Environment variable that holds the key; RLAIF_API_KEY when left out. The key itself is never written
    into a recipe."""

    api_key_file: str | None = None
    """File that holds the key on its first line."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        # Perhaps the key itself: it is not shown, and nothing is written.
        if name and not VARIABLE.fullmatch(name):
            raise ValueError(
                "this is not the name of an environment variable; if it is the key: export RLAIF_API_KEY=… "
                "instead"
            )
        return name

    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests at once to one server, at most; fewer while it says that it is busy."""

    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds for one request."""

    retries: Annotated[int, Field(ge=0, le=100)] = 6
    """Further tries of a request that failed for a temporary reason."""

    backoff: Annotated[float, Field(ge=0, le=60)] = 0.5
    """Seconds before the first of them; doubled each time, with jitter, up to half a minute."""

    give_up_after: Annotated[int, Field(ge=1)] = 64
    """Stop when so many requests in a row failed all their tries."""

    price_input: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens read."""

    price_output: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens written."""

    max_cost: Annotated[float, Field(gt=0)] | None = None
    """Stop before more than this is spent; what was answered is kept."""

    api: Literal["chat", "completions"] = "chat"
    """`chat` (the server applies the chat template) or `completions` (base models, in the plain form)."""

    reads: Literal["auto", "logprobs", "votes"] = "auto"
    """How labels are read: by `logprobs`, by `votes` (sampled answers), or `auto`: votes where there are no
    log-probabilities."""

    votes: Annotated[int, Field(ge=1, le=1024)] = 8
    """Sampled answers per label, where labels are read by votes; 1 takes one greedy answer."""

    top_logprobs: Annotated[int, Field(ge=1, le=1024)] = 20
    """Most probable tokens to ask for; vLLM allows 20 and other servers down to 5."""

    label_tokens: Literal["auto", "never"] = "auto"
    """`auto` asks for the log-probabilities of the labels' own tokens where the server can (vLLM's
    `logprob_token_ids`); `never` reads the most probable tokens only."""

    continues: bool | None = None
    """Whether the server continues an assistant's turn (vLLM, SGLang, llama.cpp do); found out when left
    out."""

    extra_body: dict[str, Any] = Field(default={})
    """Fields added to every request, for example `chat_template_kwargs: {enable_thinking: false}`; they
    replace ours. No keys here."""


class PromptFilter(Settings):
    """A moderator that prompts must pass."""

    path: str
    """Folder of a moderator, or of the stage that trained it in an earlier run."""

    drop: Literal["flagged"] = "flagged"
    """What is left out, and written to `dropped.jsonl`: prompts that some category flags."""


class SampleConfig(BaseStage, PromptSettings, GenerationSettings):
    """Sample K completions per prompt."""

    stage: Literal["sample"] = "sample"

    also: tuple[str, ...] = ()
    """Further files of prompts, taken whole beside those that are drawn; what is asked twice is asked
    once."""

    k: Annotated[int, Field(ge=1, le=1024)] = 4
    """Completions per prompt."""

    shard: Shard | None = None
    """Take every N-th prompt only, `1/4` being the first of four parts: each on a machine of its own."""

    reasoning: Literal["keep", "strip"] = "keep"
    """What to do with the reasoning of a model that reasons (`<think>…</think>`): `strip` keeps only the
    answer, which is empty where the reasoning was cut."""

    directives: DirectiveSettings | None = None
    """Directives under whose priors a share of the prompts is asked, as `{path: directives.yaml, share: 1}`;
    the prior stays in the prompt of its completions. None when left out."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The stage fails when more than this share of the completions could not be sampled."""

    moderation: PromptFilter | None = None
    """Leave out prompts that a moderator flags, as `{path: runs/guard/moderation}`; they are counted."""

    rollout: AskedRollout | None = None
    """vLLM servers that hold the policy and sample, as `{base_urls: [http://localhost:8000/v1]}`; no weights
    are loaded for it here. This process samples when left out."""

    @model_validator(mode="after")
    def _is_whole_or_a_shard(self) -> SampleConfig:
        if self.also and self.shard:
            raise ValueError("prompts in `also` are taken whole and cannot be divided into shards")
        return self

    def main_model(self, default: str) -> str | None:
        return None if self.rollout else self.policy or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        return () if self.rollout else (self.policy or default,)


class ReviseConfig(BaseStage, PromptSettings, GenerationSettings):
    """Critique and revise the policy's own completions under principles drawn at random; the result is data
    for SFT."""

    stage: Literal["revise"] = "revise"

    rounds: Annotated[int, Field(ge=1, le=16)] = 4
    """Critique–revision pairs per prompt (Bai et al. 2022 use 4); each draws its own principle."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The stage fails when more than this share of the chains ended early, since a text could not be
    sampled."""

    def main_model(self, default: str) -> str | None:
        return self.policy or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        return (self.policy or default,)


class RubricConfig(BaseStage, PromptSettings):
    """Draft a rubric for each prompt from the constitution and its reference, for a person to edit."""

    stage: Literal["rubric"] = "rubric"

    writer: str | None = None
    """Model that drafts; the recipe's `model` when left out."""

    criteria: Annotated[int, Field(ge=1, le=100)] = 8
    """Most criteria of one rubric."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest draft in tokens."""

    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Logits are divided by it; 0 means greedy."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The stage fails when more than this share of the drafts could not be written."""

    def main_model(self, default: str) -> str | None:
        return self.writer or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        return (self.writer or default,)


class AuditConfig(BaseStage):
    """Audit the judge before its labels are trusted; a later `label` stage says what was found, and can
    refuse.

    What is left out is taken from the next `label` stage, so that the judge is audited as it will be asked.
    """

    stage: Literal["audit"] = "audit"

    judge: str | None = None
    """Model to audit; that of the next `label` stage when left out."""

    protocol: Annotated[str, OneOfTheProtocols("both")] | None = None
    """How it is asked; as in the next `label` stage when left out. `both` compares pairwise and pointwise."""

    principles: Literal["sample", "all"] | None = None
    """Ask `all` principles about each comparison, or draw one (`sample`); as in the next `label` stage when
    left out."""

    data: str | None = None
    """Pairs to judge: columns `chosen` and `rejected` (a human label), or `a` and `b` (no choice). A file
    or a hub dataset."""

    prompt_column: str = "prompt"
    """Column of `data` that holds the prompt."""

    limit: Annotated[int, Field(ge=1)] = 200
    """Pairs of `data` to draw."""

    skip_bad_rows: bool = False
    """Go on without rows of `data` that cannot be read; they are counted."""

    probes: Literal["all", "on-topic", "none"] = "all"
    """Built-in comparisons with an obvious right answer to ask; `on-topic`: those that share a tag with a
    principle (all, if none)."""

    min_label_share: LabelShare | None = None
    """A verdict is invalid where its two labels hold less of the probability together; as in the next `label`
    stage when left out."""

    variants: Annotated[int, Field(ge=0)] = 100
    """Comparisons on which other label letters and wordings are tried, one principle each; 0 skips this."""

    def main_model(self, default: str) -> str | None:
        return self.judge or default

    def answering_models(self, default: str) -> tuple[str, ...]:
        return (self.judge or default,)


class LabelConfig(BaseStage):
    """Judge pairs of completions under the constitution and write preferences."""

    stage: Literal["label"] = "label"

    responses: str | None = None
    """File of your own completions or pairs; else the completions of the stage named by `input`."""

    input: str | None = None
    """Name of the stage whose completions are judged; the last one that samples when left out."""

    prompt_column: str = "prompt"
    """Column of `responses` that holds the prompt."""

    context_column: str = "context"
    """Column of `responses` that holds retrieved documents, if there is one."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """How many prompts of `responses` to take, from the top; all of them when left out."""

    shard: Shard | None = None
    """Take every N-th prompt of `responses` only, `1/4` being the first of four parts: each on a machine of
    its own."""

    skip_bad_rows: bool = False
    """Go on without rows of `responses` that cannot be read; they are counted and listed."""

    judge: str | tuple[str | JudgeSeat, ...] | None = None
    """Model that judges, or the name of a `judge` stage before this one; the recipe's `model` when left out.
    A list makes a jury: names, or `{model: NAME, weight: 2, protocol: cot, recuse: [PATTERN]}`."""

    weights: Literal["given", "audit"] = "given"
    """What the judges of a jury weigh: as `given` (1 when left out), or that times log p / (1 - p) of the
    accuracy p that the `audit` of each found, which is 0 for one that is no better than a coin."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a jury's weight that must give a valid label; with less a comparison goes unlabelled."""

    recuse: Literal["none", "base"] = "none"
    """`base` leaves a judge of a jury out where a completion was sampled by a policy of the judge's own base,
    since judges favour their own."""

    protocol: ProtocolName | None = None
    """How it is asked; what the constitution was written for when left out. `cot` reasons before a pairwise
    label, `rubric` asks the prompt's own criteria, `reference` shows its reference, `commit` answers the
    prompt itself first."""

    clamp: Annotated[float, Field(gt=0.5, le=1)] = 0.6
    """`cot` only: highest probability a verdict may give to either side (Bai et al. 2022 clamp to 40-60 %);
    at 1 nothing is clamped."""

    reasoning_tokens: Annotated[int, Field(ge=1)] = 256
    """`cot` and `commit` only: longest text in tokens that the judge writes before its label: its reasoning,
    or its own answer."""

    reasonings: Annotated[int, Field(ge=1, le=64)] = 1
    """`cot` only: so many reasonings are sampled for each question, and what the judge says behind them is
    averaged (self-consistency); each costs as much as one."""

    rubric_aggregate: RubricAggregate = "mean"
    """`rubric` only: a completion's score is its points over those possible (`mean`), its worst criterion
    (`min`), or the probability that it meets all (`all-pass`)."""

    constitution_weight: Annotated[float, Field(ge=0)] = 0.0
    """`rubric` only: what the label of the constitution's questions weighs beside the rubric's, which weighs
    1; at 0 they are not asked."""

    lacking: Literal["refuse", "skip", "plain"] = "refuse"
    """What becomes of a prompt without the `rubric` or `reference` that the protocol reads: `refuse` the run,
    `skip` and count it, or ask about it as without one (`plain`)."""

    pairs: Literal["all", "best-worst", "cohort"] | Annotated[int, Field(ge=1)] = "all"
    """Pairs per prompt: all, a number drawn at random, or only the best against the worst after all were
    judged. `cohort` judges about K log K of the pairs and fits one strength to each completion (Bradley and
    Terry): a pair's label is the difference."""

    principles: Literal["sample", "all"] = "sample"
    """`sample` draws one principle per comparison (Bai et al. 2022); `all` asks all and averages them by
    weight."""

    reasoning: Literal["keep", "judge", "strip"] = "keep"
    """What becomes of the reasoning inside completions (`<think>…</think>`): `keep` it in the preferences but
    judge the answers alone, `judge` it with the answers, or `strip` it from both. An answer whose reasoning
    was cut is empty."""

    audit: bool = True
    """Where no audit of the judge is found, ask it up to 60 built-in probes before it labels, and grade it:
    the grade stands in the table and in every row. Without it the rows say `not audited`."""

    require_audit: bool = False
    """Refuse to label with a judge that nobody audited under this constitution (`rlaif audit`, or an `audit`
    stage; the probes of `audit` do not count), or that its audit advises against."""

    calibration: str | None = None
    """File of a calibration fitted by `rlaif audit --save-calibration`, applied to the log-odds of every
    label."""

    min_label_share: LabelShare = LEAST_LABEL_SHARE
    """A verdict is invalid (`labels_unlikely`) where its two labels hold less than this share of the
    probability together."""

    max_invalid: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The stage fails when more than this share of the verdicts is invalid."""

    min_strength: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Pairs whose label is weaker (|p - 0.5|) go to `weak.jsonl` instead of the preferences, and are counted:
    for trainers that take every row as certain, as TRL's do."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the preferences file."""

    @model_validator(mode="after")
    def _reasons_are_asked_for(self) -> LabelConfig:
        seats = seats_of(self.judge, "?")
        named = {seat.protocol or self.protocol for seat in seats}
        asked = [known_protocols()[name] for name in named if name]
        if not any(each.reasons for each in asked):
            idle = ["clamp", "reasonings", *(() if any(e.commits for e in asked) else ("reasoning_tokens",))]
            refuse_idle(self, *idle, needs="protocol: cot")
        needs = {each.needs for each in asked}
        if "rubric" not in needs:
            refuse_idle(self, "rubric_aggregate", "constitution_weight", needs="protocol: rubric")
        if not needs - {None}:
            refuse_idle(self, "lacking", needs="protocol: rubric` or `protocol: reference")
        if len(seats) == 1:
            refuse_idle(self, "weights", "quorum", "recuse", needs="judge: [A, B]")
            refuse_idle(seats[0], "recuse", needs="judge: [A, B]")
        elif self.calibration is not None:
            raise ValueError("a calibration is of one judge, and there are several: leave it out")
        if self.calibration is not None:
            fields = type(self).model_fields
            others = ("rubric_aggregate", "constitution_weight", "reasonings")
            changed = [name for name in others if getattr(self, name) != fields[name].default]
            if changed:
                raise ValueError(
                    f"the calibration is an audit's, which asks without {', '.join(changed)}: leave one out"
                )
        return self

    @field_validator("judge")
    @classmethod
    def _each_once(cls, judge: NamedJudges) -> NamedJudges:
        check_seats(seats_of(judge, "?"))
        return judge

    def seats(self, default: str) -> tuple[JudgeSeat, ...]:
        """The judges, given the recipe's model; one of them is no jury."""
        return seats_of(self.judge, default)

    def main_model(self, default: str) -> str | None:
        return self.seats(default)[0].model

    def answering_models(self, default: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(seat.model for seat in self.seats(default)))
