"""From what a user names (hub id, folder, GGUF file, alias) to a loaded model.

`resolve` finds a local folder and a revision for it; everything else opens that folder with the Auto classes.
The revision of a hub model is its commit hash, of a GGUF file its SHA-256, and of a folder a digest of its
contents: config, tokenizer and weights in full up to `FULL_DIGEST_BYTES` together, beyond that each weight
file by name, size, and its first and last MiB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import safe_open

from rlaif.engines.base import EngineCard
from rlaif.engines.chat import ChatFormat, TemplateRefusal
from rlaif.engines.hf import HFEngine
from rlaif.errors import ModelError
from rlaif.files import check_regular
from rlaif.models.alias import ALIASES, find_alias
from rlaif.models.devices import pick_device, pick_dtype
from rlaif.models.gguf import converted
from rlaif.models.hub import snapshot
from rlaif.models.quiet import quiet
from rlaif.models.ranks import ConnectedRanks
from rlaif.models.sharding import load_sharded
from rlaif.ranks import current
from rlaif.suggest import did_you_mean
from rlaif.types import Message

__all__ = [
    "ModelSource",
    "ParameterCount",
    "HUB_NAME",
    "context_length",
    "count_parameters",
    "empty_model",
    "load_engine",
    "load_model",
    "load_token_count",
    "load_tokenizer",
    "resolve",
    "weights_digest",
]

Log = Callable[[str], None]

FULL_DIGEST_BYTES = 2 << 30
EDGE = 1 << 20
WEIGHT_SUFFIXES = {".safetensors", ".bin"}
SMALL_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
GENERATION = "generation_config.json"
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
AUTO_MODEL: Any = transformers.AutoModelForCausalLM
LOAD_ERRORS = (Exception,)
"""What the Auto classes raise on a broken or unfit model: anything. The tokenizers library raises `Exception`
itself."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LARGEST = {
    "vocab_size": 1 << 25,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 1 << 14,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
}
"""No model is larger: a config that says so would fill the memory before a weight is read."""
CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
LONGEST = 1 << 30
LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d{1,6})\.")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that is on this machine.

    Attributes:
        name: As the user named it.
        path: A folder that the Auto classes open.
        revision: What its answers are journaled under.
    """

    name: str
    path: Path
    revision: str


class ParameterCount(NamedTuple):
    """How large a model is: all parameters (shared ones once), and those of the input embedding table among
    them."""

    total: int
    embedding: int


def silent(line: str) -> None:
    """The default log: says nothing."""


def resolve(spec: str, *, weights: bool = True, log: Log = silent) -> ModelSource:
    """Find the model that `spec` names, fetching or converting it if need be.

    Args:
        spec: An alias (`smollm2-135m`), a folder, a `.gguf` file, or a hub id (`ORGANISATION/NAME`, with
            `@REVISION` if wanted).
        weights: False fetches config and tokenizer only, where the weights are files of their own.
        log: Told in a line what takes long.

    Raises:
        ModelError: There is no such model, or it cannot be reached.
    """
    if spec in ALIASES:
        path, revision = find_alias(spec, weights=weights, log=log)
        return ModelSource(spec, path, revision)
    local = Path(os.path.expanduser(spec))
    if spec and local.is_dir():
        return _from_folder(spec, local, log)
    if local.is_file():
        if local.suffix != ".gguf":
            raise ModelError(
                "a file, but not a GGUF file",
                where=spec,
                remedy="pass a model folder, a .gguf file or a hub name",
            )
        return ModelSource(spec, *converted(local, source=f"file {local.name}"))
    name = HUB_NAME.fullmatch(spec)
    if name is None or spec.startswith((".", "/", "~")) or local.suffix == ".gguf":
        remedy = f"{did_you_mean(spec, ALIASES)}check the path; aliases: {', '.join(ALIASES)}"
        raise ModelError("there is no such file or folder", where=spec, remedy=remedy)
    try:
        path, commit = snapshot(name["repo"], revision=name["revision"], weights=weights)
    except ModelError as error:
        if guess := did_you_mean(spec, ALIASES):
            raise ModelError(error.what, where=error.where, remedy=guess + error.remedy) from error
        raise
    return ModelSource(spec, path, commit)


def _from_folder(spec: str, folder: Path, log: Log) -> ModelSource:
    check_regular(*(path for path in folder.iterdir() if not path.is_dir()), error=ModelError)
    if (folder / "config.json").is_file():
        return ModelSource(spec, folder, weights_digest(folder))
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        log(f"opening {files[0].name}")
        return ModelSource(spec, *converted(files[0], source=f"file {files[0].name}"))
    if files:
        raise ModelError(
            "the folder contains several GGUF files", where=spec, remedy="pass one of them by its own path"
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "the folder contains an adapter, not a model",
            where=spec,
            remedy="pass its base model, or a merged model",
        )
    remedy = "pass the folder that save_pretrained wrote"
    raise ModelError("the folder contains no model: config.json is missing", where=spec, remedy=remedy)


def weights_digest(folder: Path, *, config: bool = True) -> str:
    """16 hex digits that change when config, tokenizer or weights change (how: see the module's text).

    Args:
        config: False leaves out config and tokenizer.
    """
    wanted = WEIGHT_SUFFIXES | SMALL_SUFFIXES if config else WEIGHT_SUFFIXES
    files = sorted(path for path in folder.iterdir() if path.suffix in wanted and path.is_file())
    full = sum(path.stat().st_size for path in files) <= FULL_DIGEST_BYTES
    whole = hashlib.sha256()
    try:
        for path in files:
            partly = not full and path.suffix in WEIGHT_SUFFIXES
            whole.update(f"{path.name}\0{_edges(path) if partly else _content(path)}\n".encode())
    except OSError as error:
        raise ModelError(
            f"the model cannot be read: {error}", where=str(folder), remedy="check the permissions"
        ) from None
    return whole.hexdigest()[:16]


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _edges(path: Path) -> str:
    """Size, first and last MiB: for safetensors that is the header (names, shapes, offsets) and a sample of
    the weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(EDGE)
        file.seek(max(0, size - EDGE))
        return hashlib.sha256(b"%d\0" % size + first + file.read(EDGE)).hexdigest()


def load_tokenizer(source: ModelSource | str) -> Any:
    """The tokenizer of a model.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    source = _without_weights(source)
    try:
        with quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
    except LOAD_ERRORS as error:
        remedy = "the folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json"
        raise ModelError(
            f"the tokenizer cannot be loaded: {_first_line(error)}", where=source.name, remedy=remedy
        ) from None
    if len(tokenizer) == 0 or not any(
        (source.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise ModelError(
            "the model has no tokenizer", where=source.name, remedy="put its tokenizer.json into the folder"
        )
    return tokenizer


def load_token_count(spec: str) -> ChatFormat:
    """What a plan needs: renders and counts conversations without the weights (a `TokenCount`)."""
    return _PlannedFormat(load_tokenizer(spec), name=spec)


class _PlannedFormat(ChatFormat):
    """A plan goes on where the chat template refuses a conversation, and counts its bare text: the run itself
    leaves it out."""

    def render(self, messages: Sequence[Message]) -> str:
        try:
            return super().render(messages)
        except TemplateRefusal:
            return "\n\n".join(message.content for message in messages)


def count_parameters(spec: str) -> ParameterCount:
    """Count the parameters without loading them: the model is built on the meta device."""
    model = empty_model(spec)
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCount(total=total, embedding=model.get_input_embeddings().weight.numel())


def empty_model(source: ModelSource | str) -> Any:
    """The model without its weights, on the meta device: its config, its shapes and the tokens that end it.

    Raises:
        ModelError: It is no causal language model, or cannot be found.
    """
    source = _without_weights(source)
    config = _load_config(source)
    try:
        with quiet(), torch.device("meta"):
            model = AUTO_MODEL.from_config(config, trust_remote_code=False)
        if (path := source.path / GENERATION).is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            model.generation_config = transformers.GenerationConfig.from_dict(values)
    except LOAD_ERRORS as error:
        raise _unfit(source, error) from None
    return model


def load_model(
    source: ModelSource | str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    shard: bool = False,
    log: Log = silent,
) -> Any:
    """Load a causal language model: in eval mode, without gradients.

    Args:
        dtype: `float32`, `bfloat16`, `float16`; `auto` is bfloat16 where the machine computes it well, else
            float32.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the first of CUDA, MPS, CPU, over all GPUs if there
            are several.
        shard: Hold the decoder layers in parts, one on each rank, where there are several; see `sharding`.

    Raises:
        ModelError: The model is no causal language model, lacks weights, or does not fit.
    """
    source = resolve(source, log=log) if isinstance(source, str) else source
    place, ranks = pick_device(device), current()
    if shard and isinstance(ranks, ConnectedRanks):
        kind = str(pick_dtype(dtype, place)).removeprefix("torch.")
        return load_sharded(
            lambda: load_model(source, dtype=kind, device="cpu", log=log),
            ranks,
            device=place,
            name=source.name,
        )
    config = _load_config(source)
    options: dict[str, Any] = {
        "dtype": pick_dtype(dtype, place),
        "local_files_only": True,
        "output_loading_info": True,
        "use_safetensors": True,
    }
    if device == "auto" and place.type == "cuda" and torch.cuda.device_count() > 1 and current().count == 1:
        options["device_map"] = "auto"
    _refuse_pickles(source)
    log(f"loading {source.name}")
    try:
        _check_weights(config, source)
        with quiet():
            model, info = AUTO_MODEL.from_pretrained(
                source.path, config=config, trust_remote_code=False, **options
            )
            if "device_map" not in options:
                model.to(place)
    except ModelError:
        raise
    except LOAD_ERRORS as error:
        raise _unfit(source, error) from None
    if missing := sorted(info["missing_keys"]):
        what = f"{len(missing)} weights are missing from its files, first {missing[0]}"
        raise ModelError(what, where=source.name, remedy="fetch or save the model again, whole")
    return model.eval().requires_grad_(False)


def load_engine(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    shard: bool = False,
    token_budget: int | None = None,
    rows: int | None = None,
    log: Log = silent,
) -> HFEngine:
    """Load a model and its tokenizer into an engine.

    Args:
        spec: See `resolve`.
        dtype: See `load_model`.
        device: See `load_model`.
        shard: See `load_model`.
        token_budget: Tokens, padding included, that one forward pass may hold; by device if `None`.
        rows: Most completions that are sampled side by side; by device if `None`.
        log: Told in a line what takes long.

    Raises:
        ModelError: The model or its tokenizer cannot be found or loaded.
    """
    source = resolve(spec, log=log)
    _load_config(source)  # first: a tokenizer that reads a broken config only says that it cannot be loaded
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=dtype, device=device, shard=shard, log=log)
    card = EngineCard(
        name=spec,
        revision=source.revision,
        kind="hf",
        dtype=str(model.dtype).removeprefix("torch."),
        context=context_length(model.config, tokenizer),
        chat=bool(tokenizer.chat_template),
    )
    return HFEngine(model, tokenizer, card, token_budget=token_budget, rows=rows, log=log)


def context_length(config: Any, tokenizer: Any) -> int:
    """Longest sequence that the model takes, in tokens; 2,048 where neither config nor tokenizer says."""
    text = config.get_text_config(decoder=True)
    for name in CONTEXT:
        if isinstance(value := getattr(text, name, None), int):
            return value
    limit = getattr(tokenizer, "model_max_length", 0)
    return int(limit) if 0 < limit < 1 << 30 else 2048


def _without_weights(source: ModelSource | str) -> ModelSource:
    return resolve(source, weights=False) if isinstance(source, str) else source


def _load_config(source: ModelSource) -> Any:
    """The config, checked to be that of a causal language model."""
    try:
        with quiet():
            config: Any = transformers.AutoConfig.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
    except LOAD_ERRORS as error:
        raise _unfit(source, error) from None
    _check_sizes(config, source)
    kinds = getattr(config, "architectures", None) or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        what = f"its config.json says `architectures` is {str(kinds)[:40]}, which is not a list of names"
        raise ModelError(what, where=source.name, remedy="fetch or save the model again")
    if config.is_encoder_decoder or (kinds and not any(kind.endswith(CAUSAL) for kind in kinds)):
        what = f"not a causal language model, but {', '.join(kinds) or config.model_type}"
        raise ModelError(
            what, where=source.name, remedy="pass a model that generates text, such as smollm2-135m"
        )
    return config


def _check_sizes(config: Any, source: ModelSource) -> None:
    text = config.get_text_config(decoder=True)
    if lost := [name for name, value in _floats(config.to_dict()) if not math.isfinite(value)]:
        what = f"its config.json says `{lost[0]}` is NaN or infinite"
        raise ModelError(what, where=source.name, remedy="fetch or save the model again")
    for name in CONTEXT:
        length = getattr(text, name, None)
        if length is not None and not (isinstance(length, int) and 0 < length <= LONGEST):
            what = f"its config.json says `{name}` is {str(length)[:40]}, which is not a context length"
            raise ModelError(what, where=source.name, remedy="fetch or save the model again")
    for name, most in LARGEST.items():
        size = getattr(text, name, None)
        if size is not None and not (isinstance(size, int) and 0 < size <= most):
            what = f"its config.json says `{name}` is {str(size)[:40]}, which no model has"
            raise ModelError(what, where=source.name, remedy="fetch or save the model again")


def _floats(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number with a point of a config, with its key."""
    if isinstance(values, float):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _floats(value, str(key))
    elif isinstance(values, list):
        for value in values:
            yield from _floats(value, name)


def _check_weights(config: Any, source: ModelSource) -> None:
    """Refuse a config that is far larger than the weights beside it, before anything of that size is
    allocated.

    Only headers are read. What differs a little is left to transformers, which knows what may differ.
    """
    text, rows, width, layers = config.get_text_config(decoder=True), 0, 0, 0
    for path in source.path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if found := LAYER.search(name):
                    layers = max(layers, int(found[1]) + 1)
                if name.endswith(EMBEDDINGS):
                    shape = file.get_slice(name).get_shape()
                    rows, width = max(rows, shape[0]), max(width, shape[-1])
    for name, found_size in (("vocab_size", rows), ("hidden_size", width), ("num_hidden_layers", layers)):
        size = getattr(text, name, None)
        if found_size and isinstance(size, int) and size > 2 * found_size:
            what = f"its config.json says `{name}` is {size:,}, and its weights have {found_size:,}"
            raise ModelError(
                what, where=source.name, remedy="fetch or save the model again, config and weights together"
            )


def _refuse_pickles(source: ModelSource) -> None:
    """Weights in pickles run code when they are opened; the Auto classes would look for them where there are
    no others."""
    pickles = sorted(path.name for pattern in PICKLES for path in source.path.glob(pattern))
    if pickles and not any(source.path.glob("*.safetensors")):
        raise ModelError(
            f"the weights are pickles ({pickles[0]}), which can run code when they are opened",
            where=source.name,
            remedy="convert them where you trust them: save_pretrained of a recent transformers writes "
            "safetensors",
        )


def _unfit(source: ModelSource, error: BaseException) -> ModelError:
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(
            "the model does not fit into memory",
            where=source.name,
            remedy="use a smaller model, or --device cpu",
        )
    remedy = "rlaif loads causal language models that the installed transformers knows, without remote code"
    return ModelError(f"the model cannot be loaded: {_first_line(error)}", where=source.name, remedy=remedy)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
