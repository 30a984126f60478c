"""Whether a trained judge is asked what it was trained for."""

from __future__ import annotations

from rlaif.judging.protocols import JudgingProtocol
from rlaif.models.probe_files import other_questions
from rlaif.progress import Progress
from rlaif.prompts import PromptLibrary
from rlaif.types import Constitution

__all__ = ["warn_of_other_questions"]


def warn_of_other_questions(
    judge: str,
    protocol: JudgingProtocol | type[JudgingProtocol],
    constitution: Constitution,
    library: PromptLibrary,
    progress: Progress,
) -> None:
    """Say so where `judge` was trained under another constitution or with other templates.

    Args:
        constitution: Whole, with the principles that the protocol does not ask as well.
    """
    told = other_questions(judge, constitution=constitution.digest, templates=protocol.digest(library))
    if told:
        progress.note(f"warning: {told}")
