"""The dataset card of a file of preferences: `README.md`, as the Hugging Face hub reads it.

It says how many there are, who judged them under which constitution, and how an audit graded the judge. A
licence is not stated: it is whoever publishes the file who chooses one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import DatasetCardData

from rlaif.report.markdown import code, named, table

__all__ = ["DatasetCard", "dataset_card_markdown"]


@dataclass(frozen=True)
class DatasetCard:
    """What a card says.

    Attributes:
        file: Name of the file.
        rows: Preferences in it.
        prompts: Distinct prompts among these.
        judges: Who labelled, by which protocol, with the audit's grade; empty where the file names nobody.
        constitutions: Name and digest of each.
        columns: Names of the columns.
    """

    file: str
    rows: int
    prompts: int
    judges: str
    constitutions: Sequence[tuple[str, str]]
    columns: Sequence[str]


def dataset_card_markdown(card: DatasetCard) -> str:
    """The whole README."""
    data = DatasetCardData(tags=["rlaif", "preference", "dpo"], pretty_name=card.file)
    principles = "; ".join(f"{name} (digest {digest})" for name, digest in card.constitutions)
    about = {
        "preferences": f"{card.rows:,}",
        "prompts": f"{card.prompts:,}",
        "judge": card.judges or "the file names none",
        "constitution": principles or "the file names none",
    }
    columns = ", ".join(code(name) for name in card.columns)
    by = "by the judge below" if card.judges else "as the file says"
    return "\n".join(
        (
            f"---\n{data.to_yaml()}\n---\n",
            f"# {named(card.file)}\n",
            f"Pairs of completions, each with the one that was preferred, labelled {by}.\n",
            table(("", ""), about.items()),
            f"## Columns\n\n{columns}\n",
            "## Licence\n\nNone is stated. Whoever publishes these labels chooses one that the prompts, the "
            "models that answered and the judge allow, and puts it into the first lines of this file as "
            "`license:`.\n",
        )
    )
