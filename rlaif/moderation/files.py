"""A moderator as a folder:

    moderation.json          kind, base, tokenizer, categories, thresholds, constitution, and a
                             few conversations with their scores
    heads.safetensors        the heads of prompts and of exchanges, and their calibration
    adapter/                 of the kind `lora`: PEFT's files

The folder appears whole: it is written under another name, loaded again, its scores are compared with those
of the moderator in memory, and only then it gets its name. Loading scores the same conversations again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.files import check_regular, read_object
from rlaif.models.new_folder import new_folder
from rlaif.models.shared_base import SharedBase
from rlaif.models.tensor_files import check_finite, write_tensors
from rlaif.moderation.base import Moderator, Scores
from rlaif.moderation.classifier import LoraModerator
from rlaif.moderation.probe import READS, Heads, ProbeModerator
from rlaif.reward.files import tokenizer_digest
from rlaif.types import Message

__all__ = ["ABOUT", "close_moderator", "find_moderator", "load_moderator", "moderator_note", "save_moderator"]

FORMAT = 1
ABOUT, HEADS = "moderation.json", "heads.safetensors"
ADAPTER = "adapter"
ROLE, RELOADED = "moderation", "moderation-reload-check"
PARTS = ("direction", "bias", "slope", "offset")
REMEDY = "copy or train the moderator again"
SAVE_TOLERANCE, LOAD_TOLERANCE = 1e-3, 0.1
"""Largest gap between probabilities: at save the arithmetic is the same, at load device and dtype may
differ."""
Conversation = Sequence[Message]


def find_moderator(folder: str | Path) -> Path | None:
    """The folder of the moderator that `folder` is, or that its stage left in it, if there is one."""
    named = Path(os.path.expanduser(folder))
    return next((place for place in (named, named / "model") if (place / ABOUT).is_file()), None)


def moderator_note(folder: Path) -> dict[str, Any]:
    """What `moderation.json` says, before any model is loaded.

    Raises:
        ModelError: The folder holds no moderator, or one of another format.
    """
    found = find_moderator(folder)
    if found is None:
        raise ModelError(
            f"the folder contains no moderator: {ABOUT} is missing",
            where=str(folder),
            remedy="train one with `rlaif moderation train`",
        )
    about = read_object(found / ABOUT, error=ModelError, what="the note of the moderator", remedy=REMEDY)
    if about.get("format") != FORMAT:
        raise ModelError(
            f"the moderator is of format {about.get('format')}, this rlaif reads {FORMAT}",
            where=str(found),
            remedy="use the rlaif that wrote it, or train it again",
        )
    return about


def save_moderator(
    moderator: ProbeModerator | LoraModerator,
    folder: Path,
    *,
    constitution: str,
    probes: Sequence[Conversation],
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write the moderator to `folder`, which must not exist or be empty.

    Args:
        constitution: Digest of the one that its categories are of.
        probes: A few conversations; their scores are stored and compared.
        note: JSON values to keep beside (data digests, results).

    Raises:
        ModelError: Something is there already, the folder cannot be written, or what was written scores
            otherwise.
    """
    scores = moderator.scores(probes)
    with new_folder(folder, what="the moderator") as work:
        _write(moderator, work, constitution, list(zip(probes, scores, strict=True)), note or {})
        try:
            again = load_moderator(work, moderator.base, role=RELOADED)
            _check_scores(again, scores, probes, work)
        finally:
            _drop(moderator.base, RELOADED)


def load_moderator(folder: Path, base: SharedBase, *, role: str = ROLE) -> Moderator:
    """A moderator on its base.

    Args:
        folder: Of the moderator, or of the stage that trained it.
        base: What a probe reads the states of. A moderator of the kind `lora`, which reads the text alone, is
            put on it too if it was trained on it; else its own base is loaded.
        role: Of the adapter of the kind `lora`, or how the names of several begin.

    Raises:
        ModelError: The folder is incomplete or damaged, the moderator is of another base or tokenizer, or it
            scores otherwise than it did.
    """
    about = moderator_note(folder)
    place = find_moderator(folder)
    assert place is not None
    try:
        if about["kind"] == "lora" and about["base"]["identity"] != base.identity:
            base = SharedBase.load(about["base"]["name"], device=str(base.device))
        role = _free(base, role)
        _check_base(about, base, place)
        moderator = _opened(about, place, base, role)
        probes = [_conversation(each["messages"]) for each in about["probes"]]
        stored = [{name: float(value) for name, value in each["scores"].items()} for each in about["probes"]]
        _check_scores(moderator, stored, probes, place, tolerance=LOAD_TOLERANCE)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _drop(base, role)
        raise _damaged(place, ABOUT, error) from None
    except ModelError:
        _drop(base, role)
        raise
    return moderator


def close_moderator(moderator: Moderator) -> None:
    """Take the adapter of a moderator that was loaded off its base again, if it has one."""
    if isinstance(moderator, LoraModerator):
        _drop(moderator.base, moderator.role)


def _opened(about: Mapping[str, Any], place: Path, base: SharedBase, role: str) -> Moderator:
    """The moderator that a note describes.

    Raises:
        KeyError, TypeError, ValueError: The note is damaged.
    """
    tensors = _read_tensors(place)
    categories = tuple(about["categories"])
    thresholds = {name: float(about["thresholds"][name]) for name in categories}
    layers, window = tuple(int(at) for at in about["layers"]), int(about["window"])
    size = base.hidden_size * max(1, len(layers))
    heads = {reads: _heads(tensors, reads, about, size) for reads in READS}
    if about["kind"] == "probe":
        return ProbeModerator(base, categories, thresholds, layers, heads, window)
    if about["kind"] != "lora":
        raise ValueError(f"the kind {about['kind']!r} is unknown")
    base.load_adapter(role, place / ADAPTER)
    return LoraModerator(base, role, categories, thresholds, heads, window)


def _free(base: SharedBase, role: str) -> str:
    """The role, or one like it that the base has no adapter of: of two moderators both stay."""
    names = (role, *(f"{role}-{number}" for number in range(2, len(base.roles) + 3)))
    return next(name for name in names if name not in base.roles)


def _drop(base: SharedBase, role: str) -> None:
    if role in base.roles:
        base.drop_adapter(role)


def _write(
    moderator: ProbeModerator | LoraModerator,
    folder: Path,
    constitution: str,
    probes: Sequence[tuple[Conversation, Scores]],
    note: Mapping[str, Any],
) -> None:
    base = moderator.base
    tensors = {f"{reads}.{part}": getattr(moderator.heads[reads], part) for reads in READS for part in PARTS}
    check_finite(tensors, what="the heads of the moderator")
    write_tensors(folder / HEADS, tensors)
    if isinstance(moderator, LoraModerator):
        base.save_adapter(moderator.role, folder / ADAPTER)
    about = {
        "format": FORMAT,
        "kind": "lora" if isinstance(moderator, LoraModerator) else "probe",
        "base": {"name": base.name, "identity": base.identity, "hidden_size": base.hidden_size},
        "tokenizer": tokenizer_digest(base),
        "constitution": constitution,
        "categories": list(moderator.categories),
        "thresholds": dict(moderator.thresholds),
        "layers": list(moderator.layers),
        "window": moderator.window,
        "readout": {reads: moderator.heads[reads].readout for reads in READS},
        "note": dict(note),
        "probes": [
            {"messages": [message.as_dict() for message in conversation], "scores": dict(scores)}
            for conversation, scores in probes
        ],
    }
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _check_base(about: Mapping[str, Any], base: SharedBase, folder: Path) -> None:
    trained = about["base"]
    if trained["identity"] == base.identity and about["tokenizer"] == tokenizer_digest(base):
        return
    raise ModelError(
        f"the moderator was trained on {trained['name']} (weights {trained['identity']}), the base here is "
        f"{base.name} (weights {base.identity})"
        + (" with another tokenizer" if trained["identity"] == base.identity else ""),
        where=str(folder),
        remedy="load it on its own base, or train one on this base with `rlaif moderation train --model`",
    )


def _check_scores(
    moderator: Moderator,
    wanted: Sequence[Mapping[str, float]],
    probes: Sequence[Conversation],
    folder: Path,
    *,
    tolerance: float = SAVE_TOLERANCE,
) -> None:
    found = moderator.scores(probes)
    gap = max(
        (
            abs(mine.get(name, 2.0) - value)
            for mine, stored in zip(found, wanted, strict=True)
            for name, value in stored.items()
        ),
        default=0.0,
    )
    if not gap <= tolerance:
        raise ModelError(
            f"the moderator scores otherwise than when it was saved, by up to {gap:.3g}",
            where=str(folder),
            remedy="its files or the base's weights were changed: train or copy it again",
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    check_regular(folder / HEADS, error=ModelError)
    try:
        tensors = load_file(folder / HEADS)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(folder, HEADS, error) from None
    check_finite(tensors, what="the heads of the moderator", where=str(folder), remedy=REMEDY)
    return tensors


def _heads(tensors: Mapping[str, Tensor], reads: str, about: Mapping[str, Any], size: int) -> Heads:
    """The heads of prompts or of exchanges.

    Raises:
        KeyError: Some are missing.
        ValueError: They are not of the shape that base and categories ask for.
    """
    count = len(about["categories"])
    wanted = {"direction": (count, size)} | dict.fromkeys(PARTS[1:], (count,))
    found = {part: tensors[f"{reads}.{part}"].to(torch.float32) for part in PARTS}
    for part, shape in wanted.items():
        if tuple(found[part].shape) != shape:
            raise ValueError(f"{reads}.{part} has shape {tuple(found[part].shape)}, not {shape}")
    readout = about["readout"][reads]
    if readout not in ("windows", "mean"):
        raise ValueError(f"the readout {readout!r} is unknown")
    return Heads(**found, readout=readout)


def _conversation(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    return [Message(role=turn["role"], content=turn["content"]) for turn in turns]


def _damaged(folder: Path, name: str, error: BaseException) -> ModelError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"{name} is missing, cut short or changed: {first}", where=str(folder), remedy=REMEDY)
