"""The model card of an adapter: `README.md`, as the Hugging Face hub reads it.

It says what the adapter was made of (constitution, judge, data, settings), what came out, and how to load it.
It holds nothing that differs between two runs with the same outcome (no time, no host), so that a folder's
digest is that of its contents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import ModelCardData

from rlaif.report.markdown import MarkdownText, code, named, table

__all__ = ["ModelCard", "card_markdown", "has_licence", "merged_card"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LOADING = "## How to load it"


@dataclass(frozen=True)
class ModelCard:
    """What a card says.

    Attributes:
        kind: Kind of the stage.
        method: What the adapter was trained by, in words.
        loading: How to load it, in words; as a PEFT adapter when empty.
        base: Model that the adapter belongs to, as a hub id or as the user named it.
        revision: Of the base's weights.
        first: Names of the stages whose adapters were merged into the base before.
        constitution: Name and digest.
        judge: Who labelled, and how; empty where nobody did.
        data: Digests by what they are of.
        settings: The stage's resolved settings.
        results: Figures by name.
        adapter: Whether it is a LoRA adapter, and not something that rlaif alone reads.
    """

    name: str
    kind: str
    method: str
    base: str
    revision: str
    constitution: tuple[str, str]
    loading: str = ""
    judge: str = ""
    first: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    adapter: bool = True


def card_markdown(card: ModelCard) -> str:
    """The whole README."""
    about: dict[str, str] = {"base model": code(card.base), "revision of its weights": code(card.revision)}
    about |= {
        "constitution": MarkdownText(f"{named(card.constitution[0])} (digest {code(card.constitution[1])})")
    }
    about |= {"judge": card.judge} if card.judge else {}
    parts = [
        _front_matter(card),
        f"# {named(card.name)}\n",
        f"A LoRA adapter, trained by {card.method} with rlaif.\n"
        if card.adapter
        else f"Made with rlaif: {card.method}.\n",
        _table("", about),
        _loading(card),
        _section("Results", _plain(card.results)),
        _section("Data (digests)", card.data),
        _section("Settings", _plain(card.settings)),
        "## Licence\n\nNone is stated. Whoever publishes this adapter chooses one that the base model and "
        "the data allow, and puts it "
        "into the first lines of this file as `license:`.\n",
    ]
    return "\n".join(part for part in parts if part)


def merged_card(text: str) -> str:
    """The card of the adapter, for the full model that it was merged into."""
    code = _code(
        "model = AutoModelForCausalLM.from_pretrained(folder)  # this folder, or the name it has on the hub"
    )
    head, heading, rest = text.partition(LOADING)
    if not heading:
        return text
    following = re.search(r"^## ", rest, re.MULTILINE)
    after = rest[following.start() :] if following else ""
    head = head.replace("library_name: peft", "library_name: transformers")
    head = head.replace("A LoRA adapter, trained", "A full model, its LoRA adapter merged; trained")
    return f"{head}{LOADING}\n\n{code}\n{after}"


def has_licence(text: str) -> bool:
    """Whether the card's first lines name a licence."""
    try:
        return bool(getattr(HubCard(text, ignore_metadata_errors=True).data, "license", None))
    except (ValueError, yaml.YAMLError):
        return False


def _front_matter(card: ModelCard) -> str:
    known = HUB_ID.fullmatch(card.base)  # the hub refuses a card whose base is no name of its own
    data = ModelCardData(
        base_model=card.base if known else None,
        library_name="peft" if card.adapter else None,
        tags=["rlaif", *(["lora"] if card.adapter else []), card.kind.replace("_", "-")],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _loading(card: ModelCard) -> str:
    if card.loading:
        return f"{LOADING}\n\n{card.loading}\n"
    lines = [f"model = AutoModelForCausalLM.from_pretrained({json.dumps(card.base)})"]
    lines += [
        f"model = PeftModel.from_pretrained(model, {name}_folder).merge_and_unload()"
        for name in map(_variable, card.first)
    ]
    lines.append(
        "model = PeftModel.from_pretrained(model, folder)  # this folder, or the name it has on the hub"
    )
    first = ", ".join(code(name) for name in card.first)
    note = (
        f"It belongs to the base with {first} of the same run merged into it; `rlaif push --merge` makes "
        "one model of all.\n"
    )
    return f"{LOADING}\n\n{_code(*lines)}" + (f"\n{note}" if card.first else "")


def _code(*lines: str) -> str:
    imports = "from transformers import AutoModelForCausalLM\n"
    if any("PeftModel" in line for line in lines):
        imports = "from peft import PeftModel\n" + imports
    return "```python\n" + imports + "\n" + "\n".join(lines) + "\n```\n"


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _section(title: str, rows: Mapping[str, str]) -> str:
    return _table(f"## {title}\n\n", rows) if rows else ""


def _table(title: str, rows: Mapping[str, str]) -> str:
    return title + table(("", ""), rows.items())


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    """Values for cells: short, on one line, numbers with four digits, those that are unset left out."""
    found = {}
    for name, value in values.items():
        if value is None or value in ("", (), [], {}):
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        found[name] = " ".join(text.split())
    return found
