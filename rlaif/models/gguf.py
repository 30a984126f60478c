"""GGUF files, converted once into a folder of safetensors that the Auto classes open.

The quantised weights are unpacked to bfloat16 and the folder is kept in a cache under the file's SHA-256, so
the conversion is paid once a machine. A folder appears whole (temporary name, then a rename), and
`rlaif.json` beside the weights says where it comes from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import tokenizers.pre_tokenizers as pre
import torch
import transformers

from rlaif.errors import ModelError
from rlaif.files import parse_object
from rlaif.models.quiet import quiet

__all__ = [
    "CONVERTER",
    "ORIGIN",
    "cache_folder",
    "converted",
    "find_converted",
    "make_cache_folder",
    "sha256_of",
]

CONVERTER = 1
"""Raised when the conversion changes, so that old folders are not taken for new ones."""

ORIGIN = "rlaif.json"
"""The file in a converted folder that states source, SHA-256 and sizes."""

MAGIC = b"GGUF"
SHOWN = 200
"""Characters of a path that an error shows."""
CONVERSION_ERRORS = (ValueError, KeyError, IndexError, TypeError, ImportError, RuntimeError, struct.error)


def cache_folder() -> Path:
    """`$RLAIF_CACHE`, else `$XDG_CACHE_HOME/rlaif`, else `~/.cache/rlaif`."""
    if own := os.environ.get("RLAIF_CACHE"):
        try:
            return Path(own).expanduser()
        except RuntimeError as error:  # `~nobody`
            raise _no_folder(own, error) from error
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "rlaif"
    # No HOME, and no entry in the passwd file: a container with a user of its own.
    except RuntimeError as error:
        remedy = "set RLAIF_CACHE to a folder that you may write to"
        raise ModelError("there is no home folder to keep converted models in", remedy=remedy) from error


def make_cache_folder() -> None:
    """Make the cache folder where it is not there, so that one that cannot be used is told before a download.

    Raises:
        ModelError: It cannot be made.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(str(folder), error) from error


def _no_folder(told: str, error: Exception) -> ModelError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    remedy = "set RLAIF_CACHE to a folder that you may write to"
    return ModelError(f"the cache folder cannot be used: {reason}", where=told[:SHOWN], remedy=remedy)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def revision_of(sha256: str) -> str:
    """What a converted model is journaled under: the file and the conversion."""
    return f"gguf-{sha256[:16]}-v{CONVERTER}"


def find_converted(sha256: str) -> Path | None:
    """The folder that a GGUF file with this SHA-256 was converted to; `None` if there is none, or if it is
    damaged."""
    folder = cache_folder() / "models" / revision_of(sha256)
    try:
        origin = parse_object((folder / ORIGIN).read_text("utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in origin["sizes"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return folder if whole and origin.get("sha256") == sha256 else None


def converted(file: Path, *, source: str, expect: str | None = None) -> tuple[Path, str]:
    """The folder of safetensors for a GGUF file, and its revision; converts the file on first use.

    Args:
        file: The GGUF file.
        source: Where it comes from, in words; recorded in the folder.
        expect: The SHA-256 that the file must have.

    Raises:
        ModelError: The file is not the one expected, is not a GGUF file, or cannot be converted or written.
    """
    with _as_model_error(file):
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ModelError(
                    "not a GGUF file",
                    where=str(file),
                    remedy="pass a .gguf file, a model folder or a hub name",
                )
        sha256 = sha256_of(file)
        if expect is not None and sha256 != expect:
            remedy = "delete the file and fetch it again; it is damaged or was replaced"
            raise ModelError(
                f"the file's SHA-256 is {sha256}, expected {expect}", where=str(file), remedy=remedy
            )
        folder = find_converted(sha256) or _convert(file, sha256, source)
    return folder, revision_of(sha256)


def _convert(file: Path, sha256: str, source: str) -> Path:
    """Convert into a temporary folder beside the final one, then rename."""
    final = cache_folder() / "models" / revision_of(sha256)
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=final.parent))
    try:
        # The reader draws a progress bar that has no switch.
        with quiet(), contextlib.redirect_stderr(io.StringIO()), _parsed_once():
            _write_model(file, work)
        sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        versions = {name: metadata.version(name) for name in ("transformers", "gguf")}
        origin = {
            "source": source,
            "sha256": sha256,
            "converter": CONVERTER,
            "versions": versions,
            "sizes": sizes,
        }
        (work / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
        _publish(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _write_model(file: Path, folder: Path) -> None:
    place, name = str(file.parent), file.name
    # Newer transformers keep the weights packed unless told otherwise; older ones always unpack and lack the
    # setting.
    packed = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.bfloat16, trust_remote_code=False, **options
    )
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
        place, gguf_file=name, trust_remote_code=False
    )
    if _pre_tokenizer(file) == "smollm":
        # SmolLM cuts every digit off before the byte-level split; transformers does not know this kind and
        # leaves that step out.
        steps = [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(steps)
    context = getattr(model.config, "max_position_embeddings", None)
    if context:
        tokenizer.model_max_length = context
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pre_tokenizer(file: Path) -> str:
    """The name of the pre-tokenizer, read from the bytes behind its key: type 8 (string), length, text."""
    key = b"tokenizer.ggml.pre" + struct.pack("<I", 8)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(key)
        if at < 0:
            return ""
        start = at + len(key) + 8
        (length,) = struct.unpack("<Q", content[start - 8 : start])
        return content[start : start + length].decode("utf-8", "replace")


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers parses the file three times and builds one table for every module of the model; inside the
    block, once each.

    For SmolLM2-135M that halves the time of a conversion.
    """
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _publish(work: Path, final: Path) -> None:
    """Give the finished folder its name; a folder that another process finished first, or a damaged one,
    gives way."""
    os.chmod(work, 0o755)
    if final.exists():
        shutil.rmtree(final, ignore_errors=True)
    try:
        work.rename(final)
    except OSError:
        if not (final / ORIGIN).is_file():
            raise


@contextlib.contextmanager
def _as_model_error(file: Path) -> Iterator[None]:
    """One clear error for whatever the readers and writers raise."""
    try:
        yield
    except OSError as error:
        remedy = (
            f"the converted model goes to {cache_folder()}; set RLAIF_CACHE to a folder with space "
            "that you may write to"
        )
        raise ModelError(
            f"the GGUF file could not be read or converted: {error}", where=str(file), remedy=remedy
        ) from None
    except CONVERSION_ERRORS as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = (
            "transformers converts the common architectures only; pass the model's original folder or "
            "hub name"
        )
        raise ModelError(
            f"the GGUF file cannot be converted: {first}", where=str(file), remedy=remedy
        ) from None
