"""A LoRA adapter as a folder: `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them, and
`rlaif.json`, which says which weights it was trained on. PEFT checks shapes only: an adapter on a model of
the same shape would load, and answer nonsense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

import peft
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.files import check_regular, parse_object, read_object
from rlaif.models.tensor_files import check_finite, write_tensors

__all__ = ["AdapterFiles", "read_adapter", "write_adapter"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ABOUT = "rlaif.json"
LARGEST_RANK = 65_536
LARGEST_ALPHA = 1e6
LONGEST_PATTERN = 1_000
NESTED = re.compile(r"[*+}]\)[*+{]")
"""A repetition of a repetition, which may take for ever to find nothing."""
UNREAD = ("use_dora", "modules_to_save", "trainable_token_indices")
"""Parts of a LoRA that other programs write and that are not read here."""


class AdapterFiles(NamedTuple):
    """What a folder holds.

    Attributes:
        trained_on: Identity of the base; empty where another program wrote the adapter.
    """

    config: peft.LoraConfig
    state: dict[str, Tensor]
    trained_on: str


def write_adapter(
    folder: Path, config: peft.LoraConfig, state: Mapping[str, Tensor], *, identity: str
) -> None:
    """Write an adapter; the same values give the same bytes.

    Args:
        identity: Of the base's weights.

    Raises:
        ModelError: Weights are NaN or infinite, or the disk refuses.
    """
    check_finite(state, what="the adapter")
    about = {"base": config.base_model_name_or_path, "identity": identity}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        _sort_lists(folder / ADAPTER_CONFIG)
        write_tensors(folder / ADAPTER_WEIGHTS, state, metadata={"format": "pt"})
        (folder / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    except OSError as error:
        remedy = "free space on the disk, or give the run another folder"
        raise ModelError(
            f"the adapter cannot be written: {error}", where=str(folder), remedy=remedy
        ) from error


def _sort_lists(path: Path) -> None:
    """PEFT writes sets, whose order differs from process to process, as lists."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> AdapterFiles:
    """Read what `write_adapter`, PEFT or TRL wrote.

    Raises:
        ModelError: The folder is incomplete or damaged, or the adapter is no LoRA.
    """
    where = str(folder)
    if (folder / "adapter_model.bin").is_file() and not (folder / ADAPTER_WEIGHTS).exists():
        what = "the adapter's weights are a pickle (adapter_model.bin), which can run code when it is opened"
        raise ModelError(
            what, where=where, remedy="save it again with a recent PEFT, which writes safetensors"
        )
    for name in (name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / name).exists()):
        raise ModelError(
            f"the adapter in this folder is not complete: {name} is missing",
            where=where,
            remedy="save the adapter again",
        )
    check_regular(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS, folder / ABOUT, error=ModelError)
    _check_config(folder / ADAPTER_CONFIG)
    try:
        config = peft.PeftConfig.from_pretrained(where)
        about = folder / ABOUT
        trained_on = (
            str(parse_object(about.read_text(encoding="utf-8"))["identity"]) if about.is_file() else ""
        )
        state = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "it was cut short or changed: save it again"
        raise ModelError(f"the adapter cannot be read: {first}", where=where, remedy=remedy) from None
    check_finite(state, what="the adapter", where=where, remedy="train it again")
    if whole := sorted(name for name in state if "lora_" not in name):
        raise ModelError(
            f"the adapter holds weights of the model itself beside its own ({whole[0]}), as PEFT saves them "
            "for adapters of embeddings; these are not read here",
            where=where,
            remedy="merge it into its base with PEFT, and name the merged model",
        )
    if not isinstance(config, peft.LoraConfig):
        raise ModelError(
            "the adapter is not a LoRA adapter",
            where=where,
            remedy="use one that PEFT's LoRA, TRL or rlaif wrote",
        )
    return AdapterFiles(config=config, state=state, trained_on=trained_on)


def _check_config(path: Path) -> None:
    """Refuse a config that PEFT would take, or fall over, though no adapter can be of that kind.

    Raises:
        ModelError: It is no JSON object, or a value is impossible.
    """
    remedy = "it was cut short or changed: save the adapter again"
    values = read_object(path, error=ModelError, what="the adapter's config", remedy=remedy)
    rank, alpha, modules, dropout = (
        values.get(name) for name in ("r", "lora_alpha", "target_modules", "lora_dropout")
    )
    ranks, alphas = values.get("rank_pattern"), values.get("alpha_pattern")
    other = [name for name in UNREAD if values.get(name)] + (
        ["bias"] if values.get("bias", "none") != "none" else []
    )
    if other:
        what = (
            f"the adapter uses `{other[0]}`, which is not read here: its answers would be others than "
            "those it was trained to give"
        )
        raise ModelError(
            what, where=str(path), remedy="merge it into its base with PEFT, and name the merged model"
        )
    wrong = [
        f"`{name}` is {str(value)[:40]}"
        for name, value, right in (
            ("r", rank, rank is None or _is_rank(rank)),
            ("lora_alpha", alpha, alpha is None or _is_alpha(alpha)),
            ("lora_dropout", dropout, dropout is None or (_is_number(dropout) and 0 <= dropout < 1)),
            ("target_modules", modules, _are_modules(modules)),
            (
                "rank_pattern",
                ranks,
                not ranks or (isinstance(ranks, dict) and all(map(_is_rank, ranks.values()))),
            ),
            (
                "alpha_pattern",
                alphas,
                not alphas or (isinstance(alphas, dict) and all(map(_is_alpha, alphas.values()))),
            ),
        )
        if not right
    ]
    if wrong:
        raise ModelError(
            f"the adapter's config cannot be right: {', '.join(wrong)}", where=str(path), remedy=remedy
        )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_RANK


def _is_alpha(value: object) -> bool:
    return _is_number(value) and 0 < value <= LARGEST_ALPHA


def _are_modules(value: object) -> bool:
    """A list of names or a short expression: PEFT matches it with every module's name, which must not take
    for ever."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(name, str) for name in value)
    return value is None or (
        isinstance(value, str) and 0 < len(value) <= LONGEST_PATTERN and not NESTED.search(value)
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
