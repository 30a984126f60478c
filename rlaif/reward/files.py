"""A reward model as a folder: adapters as PEFT writes them, heads, and `reward.json` with everything else.

    reward.json              base, tokenizer, pooling, normalisation, constitution, and a few conversations
    with their scores heads.safetensors        weight, bias, shift and scale of each member's head
    adapter-0/               adapter of the first member, if it has one

The folder appears whole: it is written under another name, loaded again, its scores are compared with those
of the model in memory, and only then it gets its name. Loading scores the same conversations again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlaif.digest import digest
from rlaif.errors import ModelError
from rlaif.files import check_regular, read_object
from rlaif.models.new_folder import new_folder
from rlaif.models.shared_base import REFERENCE, SharedBase
from rlaif.models.tensor_files import check_finite, write_tensors
from rlaif.reward.head import ScalarHead
from rlaif.reward.model import Conversation, Member, RewardModel
from rlaif.types import Message

__all__ = ["find_reward_model", "load_reward_model", "reward_note", "save_reward_model"]

FORMAT = 1
ABOUT, HEADS = "reward.json", "heads.safetensors"
REMEDY = "copy or train the model again"
SAVE_TOLERANCE, LOAD_TOLERANCE = 1e-3, 0.25
"""Largest gap between scores, in standard deviations: at save the arithmetic is the same, at load device and
dtype may differ."""


def find_reward_model(folder: Path) -> Path | None:
    """The folder of the reward model that `folder` is, or that its stage left in it, if there is one."""
    return next((place for place in (folder, folder / "model") if (place / ABOUT).is_file()), None)


def save_reward_model(
    model: RewardModel, folder: Path, *, probes: Sequence[Conversation], note: Mapping[str, Any] | None = None
) -> None:
    """Write the model to `folder`, which must not exist or be empty.

    Args:
        probes: A few conversations; their scores are stored and compared.
        note: JSON values to keep beside (data digests, results).

    Raises:
        ModelError: Something is there already, the folder cannot be written, or what was written scores
            otherwise.
    """
    with new_folder(folder, what="the reward model") as work:
        scores = model.score(probes)
        _write(model, work, list(zip(probes, scores, strict=True)), note or {})
        _verify(load_reward_model(model.base, work, name="reload-check"), probes, scores, work)


def load_reward_model(
    base: SharedBase,
    folder: Path,
    *,
    name: str = "reward",
    constitution: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> RewardModel:
    """Add a saved reward model to `base`, frozen.

    Args:
        name: Role of its adapter; an ensemble's are `NAME-0`, `NAME-1`, …
        constitution: Digest of the constitution in use; `log` is told when the model was trained under
            another.

    Raises:
        ModelError: The folder is incomplete or damaged, or the model is of another base or tokenizer, or
            scores otherwise than it did.
    """
    about = _read_about(folder)
    _check_base(about, base, folder)
    trained = about["constitution"]
    if constitution is not None and trained and trained != constitution:
        log(
            f"the reward model in {folder} was trained under constitution {trained}, not {constitution}: it "
            "rewards other things"
        )
    heads = _read_heads(folder)
    members, added = [], []
    try:
        for number, entry in enumerate(about["members"]):
            role = REFERENCE
            if entry["adapter"]:
                role = name if len(about["members"]) == 1 else f"{name}-{number}"
                base.load_adapter(role, folder / entry["adapter"])
                added.append(role)
            members.append(
                Member(
                    role=role, head=_head(heads, number, base, folder), mean=entry["mean"], std=entry["std"]
                )
            )
        model = RewardModel(
            base,
            members,
            pooling=about["pooling"],
            combine=about["combine"],
            variance_penalty=about["variance_penalty"],
            mean=about["mean"],
            std=about["std"],
            constitution=trained,
        )
        _check_scores(model, about, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _drop(base, added)
        raise _damaged(folder, ABOUT, error) from None
    except ModelError:
        _drop(base, added)
        raise
    return model


def reward_note(folder: Path) -> Mapping[str, Any]:
    """What was noted beside a reward model when it was saved (`save_reward`): the judge behind its labels,
    and such.

    Raises:
        ModelError: The folder holds no reward model, or its files are damaged.
    """
    note = _read_about(folder).get("note")
    return note if isinstance(note, dict) else {}


def tokenizer_digest(base: SharedBase) -> str:
    """Digest of what turns a conversation into ids: the vocabulary, what it adds, and the chat template."""
    tokenizer = base.tokenizer
    added = sorted((number, str(token)) for number, token in tokenizer.added_tokens_decoder.items())
    return digest([sorted(tokenizer.get_vocab().items()), added, str(tokenizer.chat_template)])


def _write(
    model: RewardModel, folder: Path, probes: Sequence[tuple[Conversation, float]], note: Mapping[str, Any]
) -> None:
    entries: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for number, member in enumerate(model.members):
        adapter = None if member.role == REFERENCE else f"adapter-{number}"
        if adapter:
            model.base.save_adapter(member.role, folder / adapter)
        entries.append({"adapter": adapter, "mean": member.mean, "std": member.std})
        tensors |= {
            f"{number}.{key}": value.detach().cpu().contiguous()
            for key, value in member.head.state_dict().items()
        }
    check_finite(tensors, what="the heads of the reward model")
    write_tensors(folder / HEADS, tensors)
    base = model.base
    about = {
        "format": FORMAT,
        "base": {"name": base.name, "identity": base.identity, "hidden_size": base.hidden_size},
        "tokenizer": tokenizer_digest(base),
        "pooling": model.pooling,
        "combine": model.combine,
        "variance_penalty": model.variance_penalty,
        "mean": model.mean,
        "std": model.std,
        "constitution": model.constitution,
        "members": entries,
        "note": dict(note),
        "probes": [
            {"messages": [message.as_dict() for message in conversation], "score": score}
            for conversation, score in probes
        ],
    }
    (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _verify(
    again: RewardModel, probes: Sequence[Conversation], scores: Sequence[float], folder: Path
) -> None:
    """Compare the scores of the model that was read back with those of the one in memory; its adapters leave
    the base."""
    try:
        gap = _largest_gap(again.score(probes), scores)
    finally:
        _drop(again.base, [member.role for member in again.members if member.role != REFERENCE])
    if not gap <= SAVE_TOLERANCE:
        what = (
            f"the saved reward model scores otherwise than the one in memory, by up to {gap:.3g} "
            "standard deviations"
        )
        raise ModelError(
            what,
            where=str(folder),
            remedy="this is a defect: please report it with the versions of torch and PEFT",
        )


def _check_scores(model: RewardModel, about: Mapping[str, Any], folder: Path) -> None:
    probes = [
        [Message(role=m["role"], content=m["content"]) for m in probe["messages"]]
        for probe in about["probes"]
    ]
    gap = _largest_gap(model.score(probes), [probe["score"] for probe in about["probes"]])
    if not gap <= LOAD_TOLERANCE:
        what = (
            f"the reward model scores otherwise than when it was saved, by up to {gap:.3g} standard "
            "deviations"
        )
        raise ModelError(
            what,
            where=str(folder),
            remedy="its files or the base's weights were changed: train or copy it again",
        )


def _largest_gap(first: Sequence[float], second: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(first, second, strict=True)), default=0.0)


def _read_about(folder: Path) -> dict[str, Any]:
    if not (folder / ABOUT).is_file():
        remedy = "train one with `rlaif reward`"
        raise ModelError(
            f"the folder contains no reward model: {ABOUT} is missing", where=str(folder), remedy=remedy
        )
    about = read_object(folder / ABOUT, error=ModelError, what="the note of the reward model", remedy=REMEDY)
    try:
        version, _ = (
            about["format"],
            (about["base"]["identity"], about["tokenizer"], about["members"], about["constitution"]),
        )
    except (KeyError, TypeError) as error:
        raise _damaged(folder, ABOUT, error) from None
    if version != FORMAT:
        what = f"the reward model is of format {version}, this rlaif reads {FORMAT}"
        raise ModelError(what, where=str(folder), remedy="use the rlaif that wrote it, or train it again")
    return dict(about)


def _check_base(about: Mapping[str, Any], base: SharedBase, folder: Path) -> None:
    trained = about["base"]
    if about["tokenizer"] != tokenizer_digest(base):
        what = (
            f"the reward model was trained with the tokenizer of {trained['name']}, which is not that of "
            f"{base.name}"
        )
        raise ModelError(what, where=str(folder), remedy=f"load it on a base of its own: {trained['name']}")
    if trained["identity"] != base.identity:
        what = (
            f"the reward model was trained on {trained['name']} (weights {trained['identity']}), the base "
            f"here is {base.name} "
            f"(weights {base.identity})"
        )
        raise ModelError(
            what,
            where=str(folder),
            remedy="load it on its own base, with the same adapter merged, or train it again",
        )


def _read_heads(folder: Path) -> dict[str, torch.Tensor]:
    check_regular(folder / HEADS, error=ModelError)
    try:
        return load_file(folder / HEADS)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(folder, HEADS, error) from None


def _head(heads: Mapping[str, torch.Tensor], number: int, base: SharedBase, folder: Path) -> ScalarHead:
    head = ScalarHead(base.hidden_size)
    own = {
        key.removeprefix(f"{number}."): value for key, value in heads.items() if key.startswith(f"{number}.")
    }
    try:
        head.load_state_dict(own)
    except RuntimeError as error:
        raise _damaged(folder, HEADS, error) from None
    return head.requires_grad_(False)


def _drop(base: SharedBase, roles: Sequence[str]) -> None:
    for role in roles:
        base.drop_adapter(role)


def _damaged(folder: Path, name: str, error: BaseException) -> ModelError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(f"{name} is missing, cut short or changed: {first}", where=str(folder), remedy=REMEDY)
