"""The core values. All are frozen: a stage takes some and returns new ones.

One word for one thing: a *completion* is a policy's answer to a prompt; a *comparison* is a prompt with two
completions, `a` and `b`; a *verdict* is one judgement of a comparison by one principle in one order; a
*preference* is its verdicts, aggregated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from rlaif.digest import digest
from rlaif.text import one_line

__all__ = [
    "Answers",
    "Comparison",
    "Completion",
    "Constitution",
    "Criterion",
    "Example",
    "Message",
    "Order",
    "Preference",
    "Principle",
    "Prompt",
    "Protocol",
    "Role",
    "TEXT_KEYS",
    "Verdict",
]

Role = Literal["system", "user", "assistant"]
Protocol = Literal["pairwise", "pointwise"]
TEXT_KEYS = ("critique", "revision", "comparison", "question")
"""The four texts of a principle."""
NAMED = 40
"""Characters of a criterion's text that stand in its id."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates, `datasets` and TRL read."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Answers:
    """The two answers of a pointwise question, as the judge must write them."""

    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class Principle:
    """One rule of a constitution. At least one of the four texts is there; a stage names the one it needs.

    Attributes:
        id: Short name, unique in its constitution.
        critique: Asks a model to find what breaks this rule in its own completion.
        revision: Asks it to rewrite the completion so that the rule holds.
        comparison: Asks a judge which of two completions keeps the rule better (pairwise).
        question: Asks a judge about one completion alone (pointwise); its answers are `answers`.
        answers: The good and the bad answer of `question`; `None` means the template's own (yes, no).
        answer_prefix: How the judge's answer to `question` begins, up to where one of `answers` follows;
            `None` means the template's own.
        weight: Relative weight when principles are drawn or averaged; greater than 0.
        tags: Words to group principles by in reports.
    """

    id: str
    critique: str | None = None
    revision: str | None = None
    comparison: str | None = None
    question: str | None = None
    answers: Answers | None = None
    answer_prefix: str | None = None
    weight: float = 1.0
    tags: tuple[str, ...] = ()

    def meaning(self) -> dict[str, Any]:
        """What the principle says, as JSON values: the part of it that a digest covers (tags are for reports
        only)."""
        answers = [self.answers.good, self.answers.bad] if self.answers else None
        return {
            "id": self.id,
            "critique": self.critique,
            "revision": self.revision,
            "comparison": self.comparison,
            "question": self.question,
            "answers": answers,
            "lead": self.answer_prefix,  # as version 0.1.0 named it: the digests of its files stay
            "weight": float(self.weight),
        }


@dataclass(frozen=True, slots=True)
class Example:
    """A worked pairwise judgement, shown to the judge before the real one (few-shot)."""

    conversation: tuple[Message, ...]
    a: str
    b: str
    principle: str
    answer: Literal["A", "B"]

    def meaning(self) -> dict[str, Any]:
        """The example as JSON values, for the digest."""
        turns = [message.as_dict() for message in self.conversation]
        return {
            "conversation": turns,
            "a": self.a,
            "b": self.b,
            "principle": self.principle,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class Constitution:
    """A named list of principles. One file drives critique, revision and judging, so they cannot drift apart.

    Attributes:
        protocol: The judging protocol that the principles were written for; a command can override it.
        language: BCP 47 tag; chooses the prompt templates (`en`: `prompts/`, `zh`: `prompts/zh/`).
    """

    name: str
    principles: tuple[Principle, ...]
    description: str = ""
    language: str = "en"
    protocol: Protocol = "pairwise"
    examples: tuple[Example, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Digest of the meaning: name, description, tags, comments and key order do not change it; a changed
        word does."""
        return digest(
            {
                "language": self.language,
                "protocol": self.protocol,
                "principles": [principle.meaning() for principle in self.principles],
                "examples": [example.meaning() for example in self.examples],
            }
        )

    def principle(self, id: str) -> Principle:
        """The principle named `id`.

        Raises:
            KeyError: There is none.
        """
        for principle in self.principles:
            if principle.id == id:
                return principle
        raise KeyError(id)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One statement of a prompt's rubric, which is true of a completion or not.

    Attributes:
        text: The statement.
        points: What a completion of which it is true wins; below 0, what it loses. Not 0, but for a `must`.
        must: A completion of which it is not true scores 0; it has no points.
        tags: Words to group criteria by in reports.
    """

    text: str
    points: float = 1.0
    must: bool = False
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """How the text begins, and a digest of it: the same in every rubric that holds it."""
        text = one_line(" ".join(self.text.split()))
        return f"{text if len(text) <= NAMED else text[: NAMED - 1] + '…'} #{digest(self.text)[:8]}"

    @property
    def wanted(self) -> bool:
        """Whether a good completion is one of which it is true."""
        return self.must or self.points > 0

    def meaning(self) -> dict[str, Any]:
        """The criterion as JSON values, as files hold it."""
        points = None if self.must else float(self.points)
        return {"text": self.text, "points": points, "must": self.must, "tags": list(self.tags)}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is asked: chat messages that end with the user's turn.

    Attributes:
        id: Stable name; derived from the content where the data has none.
        messages: The conversation so far, the last message from the user.
        context: Retrieved documents that the answer should rest on; policy and judge both read them.
        tags: Words to group prompts by.
        rubric: What a judge asks of a completion of this very prompt; the policy does not read it.
        reference: An answer that is known to be good, for the judge; `None` where there is none.
    """

    id: str
    messages: tuple[Message, ...]
    context: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rubric: tuple[Criterion, ...] = ()
    reference: str | None = None

    def fingerprint(self) -> str:
        """Digest of what is asked, whatever its id: equal prompts have equal fingerprints (used to split and
        to find overlap). What the judge alone reads, rubric and reference, is no part of it."""
        return digest(
            [[message.role, " ".join(message.content.split())] for message in self.messages]
            + [list(self.context)]
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A policy's answer to a prompt.

    Attributes:
        id: `PROMPT_ID/INDEX`.
        index: Which of the K samples of its prompt this is, from 0.
        finish: `stop` (the model ended its turn), `length` (cut at the token limit) or `given` (came from a
            file).
        model: Name of the policy, with its revision as `name@revision`.
    """

    id: str
    prompt_id: str
    index: int
    text: str
    finish: Literal["stop", "length", "given"]
    model: str
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt and two completions.

    Attributes:
        cohort: All completions of the prompt that are compared with each other; empty where there are but
            these two. It does not tell one comparison from another.
    """

    prompt: Prompt
    a: Completion
    b: Completion
    cohort: tuple[Completion, ...] = field(default=(), compare=False, repr=False)

    @property
    def id(self) -> str:
        """`PROMPT_ID/INDEX_OF_A-INDEX_OF_B`."""
        return f"{self.prompt.id}/{self.a.index}-{self.b.index}"

    def swap(self) -> Comparison:
        """The same comparison with `a` and `b` exchanged; its own inverse."""
        return replace(self, a=self.b, b=self.a)


class Order(StrEnum):
    """In which order a judge read the two completions."""

    AB = "ab"
    BA = "ba"
    ALONE = "alone"
    """Pointwise: each completion was read without the other."""

    def swap(self) -> Order:
        """The order under which `Comparison.swap()` reads the same text; its own inverse."""
        return {Order.AB: Order.BA, Order.BA: Order.AB, Order.ALONE: Order.ALONE}[self]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement of one comparison, by one principle, in one order.

    Attributes:
        logit_a: Log-odds that `a` is the better one, whichever order it was shown in (nats); `None` when
            invalid.
        reason: Why the verdict is invalid; empty when it is valid.
        evidence: What the judge answered, for the record: label log-probabilities by label, and their total
            mass.
        reasoning: What the judge wrote before its label; empty unless the protocol is `cot`.
        groups: Names under which statistics count the verdict; its principle's where there are none.
        judge: Who gave it, where several were asked; else empty.
    """

    comparison_id: str
    principle_id: str
    order: Order
    logit_a: float | None
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    reasoning: str = ""
    groups: tuple[str, ...] = ()
    judge: str = ""

    @property
    def valid(self) -> bool:
        """Whether the verdict may count."""
        return self.logit_a is not None

    def swap(self) -> Verdict:
        """The same judgement told of the swapped comparison; its own inverse."""
        logit = None if self.logit_a is None else -self.logit_a
        return replace(self, order=self.order.swap(), logit_a=logit)


@dataclass(frozen=True, slots=True)
class Preference:
    """A comparison with its verdicts aggregated into one soft label.

    Attributes:
        logit_a: Weighted mean of the valid verdicts' log-odds that `a` is better (nats).
    """

    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    logit_a: float
