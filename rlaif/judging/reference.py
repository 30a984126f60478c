"""Judged beside an answer: the protocols `reference` (pairwise) and `reference-pointwise` show the judge an
answer that is known to be good (Zheng et al. 2023, arXiv 2306.05685, §3.1, "reference-guided grading"), and
ask the principle's own question.

The answer stands before the responses: it is the same for all pairs of a prompt, which share it as a prefix.
The worked examples of a constitution have no such answer, and are not shown.
"""

from __future__ import annotations

from typing import ClassVar, Self

from rlaif.engines.base import LEAST_SHARE
from rlaif.errors import DataError
from rlaif.judging.protocols import WAYS, ByWays, Need, Pairwise, Pointwise, Ways
from rlaif.prompts import LabelPrompt, PromptLibrary
from rlaif.types import Comparison, Completion, Constitution, Principle, Prompt

__all__ = ["Reference", "ReferencePointwise"]


class Reference(Pairwise):
    """The pairwise question, beside the prompt's reference.

    Args:
        ways: Whether a prompt without a reference is asked about without one.
    """

    name = "reference"
    template = "judge_reference"
    needs: ClassVar[Need | None] = "reference"
    relabelling = "none"

    def __init__(
        self,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        ways: Ways = WAYS,
        least_share: float = LEAST_SHARE,
    ) -> None:
        super().__init__(library, constitution, least_share=least_share)
        self._plain = ways.plain or self.commits

    @classmethod
    def open(
        cls,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        clamp: float,
        least_share: float,
        ways: Ways = WAYS,
    ) -> Self:
        """See `JudgingProtocol`."""
        return cls(library, constitution, ways=ways, least_share=least_share)

    def prompt(self, comparison: Comparison, principle: Principle) -> LabelPrompt:
        """See `Pairwise`.

        Raises:
            DataError: The prompt has no reference, and must have one.
        """
        return self._library.judge_pairwise(
            comparison,
            principle,
            self._constitution,
            template=self.template,
            reference=_shown(comparison.prompt, self._plain),
        )


class ReferencePointwise(ByWays, Pointwise):
    """The pointwise question, beside the prompt's reference; arguments as for `Reference`."""

    name = "reference-pointwise"
    template = "judge_reference_pointwise"
    also: ClassVar[tuple[str, ...]] = (Pointwise.template,)
    needs: ClassVar[Need | None] = "reference"
    relabelling = "none"

    def __init__(
        self, library: PromptLibrary, *, ways: Ways = WAYS, least_share: float = LEAST_SHARE
    ) -> None:
        super().__init__(library, least_share=least_share)
        self._plain = ways.plain or self.commits

    def prompt(self, prompt: Prompt, completion: Completion, principle: Principle) -> LabelPrompt:
        """See `Pointwise`.

        Raises:
            DataError: The prompt has no reference, and must have one.
        """
        return self._library.judge_pointwise(
            prompt, completion, principle, template=self.template, reference=_shown(prompt, self._plain)
        )


def _shown(prompt: Prompt, plain: bool) -> str:
    """The reference that a template shows; empty where it shows none."""
    if prompt.reference is None and not plain:
        raise DataError(
            "the prompt has no reference to judge its completions against",
            where=f"prompt {prompt.id}",
            remedy="give its row a `reference`, or choose another protocol",
        )
    return prompt.reference or ""
