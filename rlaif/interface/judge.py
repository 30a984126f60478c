"""A judge to ask from Python: which of two completions keeps a constitution better, and how good is each?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from rlaif.audit.report import AuditReport
from rlaif.config.labelling import LEAST_LABEL_SHARE, RubricAggregate, ServerConfig
from rlaif.constitution.load import load_constitution, require
from rlaif.engines.journaled import Memo, NullMemo
from rlaif.interface.values import Chat, as_comparison, as_completions, as_prompts
from rlaif.jobs.audit_task import AuditTask, audit_inputs, conduct
from rlaif.jobs.engines import Engines
from rlaif.judging.judge import PrincipleMode
from rlaif.judging.protocols import Pointwise, Ways
from rlaif.judging.reasoning import CLAMP, REASONING_TOKENS
from rlaif.judging.table import PROTOCOLS, open_judge, open_protocol
from rlaif.labels import sigmoid
from rlaif.models.probe_files import other_questions, protocol_of
from rlaif.progress import NoProgress, Progress
from rlaif.prompts import PromptLibrary
from rlaif.reward.functions import JudgeReward
from rlaif.reward.rubric import RubricReward
from rlaif.runs.journal import Journal
from rlaif.runs.spending import Spending
from rlaif.types import Comparison, Completion, Constitution, Prompt, Verdict

__all__ = ["Judge", "Judgement"]

CHUNK = 64
"""Pairs that `label` asks about at a time."""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of two completions.

    Attributes:
        comparison: The prompt and both completions.
        verdicts: One per principle and order; an invalid one says why in its `reason`.
        p_a: Probability that `a` is the better one; `None` where no verdict is valid.
    """

    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    p_a: float | None

    @property
    def chosen(self) -> str | None:
        """The text of the better completion; `None` where neither is."""
        if self.p_a is None or self.p_a == 0.5:
            return None
        return (self.comparison.a if self.p_a > 0.5 else self.comparison.b).text

    def as_row(self) -> dict[str, Any]:
        """The judgement as a row of plain values, for a table of many."""
        return {
            "prompt": self.comparison.prompt.messages[-1].content,
            "a": self.comparison.a.text,
            "b": self.comparison.b.text,
            "p_a": self.p_a,
            "verdicts": len(self.verdicts),
            "invalid": sum(not verdict.valid for verdict in self.verdicts),
        }

    def _repr_html_(self) -> str:
        cells = [
            ("prompt", self.as_row()["prompt"]),
            ("a", self.comparison.a.text),
            ("b", self.comparison.b.text),
        ]
        cells.append(("P(a is better)", "no valid verdict" if self.p_a is None else f"{self.p_a:.3f}"))
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in cells)
        return f"<table>{rows}</table>"


class Judge:
    """A model that judges under a constitution. Made by `Judge.open`; a context manager that closes its
    journal.

    Attributes:
        constitution: With the principles that the protocol reads.
        protocol: `pairwise`, `pointwise`, `cot`, `rubric`, …
    """

    def __init__(
        self,
        engines: Engines,
        model: str,
        constitution: Constitution,
        library: PromptLibrary,
        *,
        protocol: str,
        principles: PrincipleMode,
        seed: int,
        source: str,
        clamp: float,
        ways: Ways,
        min_label_share: float,
        reasoning_tokens: int,
        reasonings: int,
        progress: Progress,
    ) -> None:
        self._protocol = open_protocol(
            protocol,
            library=library,
            constitution=constitution,
            clamp=clamp,
            least_share=min_label_share,
            ways=ways,
        )
        principles_of = require(constitution, self._protocol.half, source=source)
        self.constitution = replace(constitution, principles=principles_of)
        self.protocol = protocol
        self._engines, self._model = engines, model
        self._whole, self._library, self._source = constitution, library, source
        self._principles, self._seed = principles, seed
        self._ways, self._min_label_share, self._reasoning_tokens = ways, min_label_share, reasoning_tokens
        self._reasonings, self._progress = reasonings, progress

    @classmethod
    def open(
        cls,
        model: str,
        *,
        constitution: str | Path = "default",
        protocol: str | None = None,
        principles: PrincipleMode = "all",
        seed: int = 0,
        journal: str | Path | None = None,
        prompts_dir: Path | None = None,
        dtype: str = "auto",
        device: str = "auto",
        base_url: str | Sequence[str] = (),
        server: ServerConfig | None = None,
        clamp: float = CLAMP,
        reasoning_tokens: int = REASONING_TOKENS,
        reasonings: int = 1,
        rubric_aggregate: RubricAggregate = "mean",
        constitution_weight: float = 0.0,
        lacking: Literal["refuse", "plain"] = "refuse",
        min_label_share: float = LEAST_LABEL_SHARE,
        progress: Progress | None = None,
    ) -> Judge:
        """Open the judge that `model` names: a hub id, a folder, a GGUF file, an alias, or `openai:NAME`.

        Args:
            constitution: A principle file, or the name of a shipped one.
            protocol: How the judge is asked; what the constitution was written for when left out.
            principles: `all` asks all and averages them by weight; `sample` draws one per comparison.
            journal: File in which answers are kept, so that no question is paid for twice.
            base_url: Where an `openai:` model is served; several share the load.
            server: More about that server, as in a recipe.
            clamp, reasoning_tokens, reasonings: For protocols that reason: the highest probability of either
                side, the longest reasoning, and how many are averaged. `commit` takes `reasoning_tokens` too.
            rubric_aggregate: How `rubric` makes a score of criteria: `mean`, `min` or `all-pass`.
            constitution_weight: What the constitution's questions weigh beside a rubric, which weighs 1.
            lacking: What becomes of a prompt without the rubric or reference that the protocol reads:
                `refuse` it, or ask about it as without one (`plain`).
            min_label_share: A verdict is invalid where its two labels hold less of the probability together.

        Warns:
            UserWarning: The judge was trained under another constitution, or with other templates.

        Raises:
            RlaifError: The model or the constitution cannot be used.
        """
        loaded = load_constitution(str(constitution))
        asked = protocol_of(model, protocol, loaded.protocol)
        library = PromptLibrary(loaded.language, prompts_dir)
        templates = PROTOCOLS[asked].digest(library) if asked in PROTOCOLS else ""
        if other := other_questions(model, constitution=loaded.digest, templates=templates):
            warnings.warn(other, stacklevel=2)
        urls = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        place = server or ServerConfig(base_urls=urls)
        told = progress or NoProgress()
        memo: Memo = Journal(Path(journal)) if journal else NullMemo()
        engines = Engines(
            memo, dtype=dtype, device=device, server=place, note=told.note, spending=Spending(None)
        )
        return cls(
            engines,
            model,
            loaded,
            library,
            protocol=asked,
            principles=principles,
            seed=seed,
            source=str(constitution),
            clamp=clamp,
            ways=Ways(rubric_aggregate, constitution_weight, plain=lacking == "plain"),
            min_label_share=min_label_share,
            reasoning_tokens=reasoning_tokens,
            reasonings=reasonings,
            progress=told,
        )

    @property
    def name(self) -> str:
        """`MODEL@REVISION`, as labels name their judge."""
        return self._engines.card(self._model).label

    def compare(
        self, prompt: Chat | Prompt | Mapping[str, Any], a: Chat | Completion, b: Chat | Completion
    ) -> Judgement:
        """Judge two completions of one prompt, in both orders where the protocol has orders."""
        (found,) = self.label([as_comparison(prompt, a, b)])
        return found

    def label(
        self,
        pairs: Iterable[
            Comparison | tuple[Chat | Prompt | Mapping[str, Any], Chat | Completion, Chat | Completion]
        ],
    ) -> Iterator[Judgement]:
        """Judge pairs, in their order: comparisons (as `rlaif.read_pairs` gives them) or triples of a prompt
        and two completions."""
        judge = open_judge(
            self._engines.get(self._model),
            self._protocol,
            self.constitution,
            principles=self._principles,
            seed=self._seed,
            progress=self._progress,
            reasoning_tokens=self._reasoning_tokens,
            reasonings=self._reasonings,
        )
        waiting = iter(pairs)
        while chunk := list(islice(waiting, CHUNK)):
            asked = [each if isinstance(each, Comparison) else as_comparison(*each) for each in chunk]
            for found in judge.judge(_told_apart(asked)):
                p_a = None if found.logit_a is None else sigmoid(found.logit_a)
                yield Judgement(comparison=found.comparison, verdicts=found.verdicts, p_a=p_a)

    def score(
        self, prompts: Sequence[Chat | Prompt | Mapping[str, Any]], completions: Sequence[Chat | Completion]
    ) -> list[float]:
        """How well each completion keeps the principles: P(good answer), averaged by weight, between 0 and 1.

        Asks the pointwise question of every principle (direct RLAIF, Lee et al. 2023, 2309.00267, §2.2.2).
        Under the protocol `rubric` it is the score under the rubric of the prompt, at most 1
        (`judging.rubric`).

        Raises:
            ConfigError: A principle has no such question, or the judge was trained to answer others.
            DataError: A completion got no valid answer, or a prompt no rubric.
        """
        asked = as_prompts(prompts)
        if self._protocol.needs == "rubric":
            scores = RubricReward(
                self._engines.get(self._model),
                self._library,
                aggregate=self._ways.aggregate,
                least_share=self._min_label_share,
            )
            return list(scores(asked, as_completions(asked, completions)).total)
        protocol_of(self._model, Pointwise.name, Pointwise.name)
        principles = require(self._whole, "question", source=self._source)
        reward = JudgeReward(
            self._engines.get(self._model),
            self._library,
            replace(self._whole, principles=principles),
            least_share=self._min_label_share,
        )
        return list(reward(asked, as_completions(asked, completions)).total)

    def audit(self, data: str | Path | None = None, *, limit: int = 200, variants: int = 100) -> AuditReport:
        """Find out what the judge is worth, as `rlaif audit` does: on pairs with human labels if `data` has
        some, and on built-in comparisons with an obvious right answer.

        Args:
            data: A file or hub dataset of pairs.
            limit: Pairs of it to draw.
            variants: Comparisons on which other label letters and wordings are tried.
        """
        task = AuditTask(
            judge=self._model,
            constitution=self._source,
            data=None if data is None else str(data),
            protocol=self.protocol,
            limit=limit,
            principles=self._principles,
            variants=variants,
            seed=self._seed,
            min_label_share=self._min_label_share,
        )
        inputs = audit_inputs(task, self._progress)._replace(library=self._library)
        return conduct(task, inputs, self._engines.get(self._model), progress=self._progress)

    def close(self) -> None:
        """Close the journal."""
        if isinstance(self._engines.memo, Journal):
            self._engines.memo.close()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _told_apart(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ids that differ, and completion ids that stand for one text each: pairs of one
    prompt may have been given without places in it, or with places that others have too."""
    texts: dict[str, str] = {}
    found: dict[str, Comparison] = {}
    for each in comparisons:
        moved = next(
            placed
            for shift in count(step=2)
            if (placed := _moved(each, shift)).id not in found
            and all(texts.get(one.id, one.text) == one.text for one in (placed.a, placed.b))
        )
        found[moved.id] = moved
        texts.update({one.id: one.text for one in (moved.a, moved.b)})
    return list(found.values())


def _moved(comparison: Comparison, shift: int) -> Comparison:
    """The comparison with its completions `shift` places further on."""
    if not shift:
        return comparison
    a, b = (_at(completion, completion.index + shift) for completion in (comparison.a, comparison.b))
    return replace(comparison, a=a, b=b)


def _at(completion: Completion, index: int) -> Completion:
    return replace(completion, id=f"{completion.prompt_id}/{index}", index=index)
