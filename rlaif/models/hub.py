"""A repository of the Hugging Face hub as a local folder, quickly or with one clear error.

Only files at the top of the repository are taken (no `onnx/`, `original/`), and no pickles. Without a network
the copy in Hugging Face's own cache is used, whatever its age.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, snapshot_download

from rlaif.errors import ModelError

__all__ = ["offline", "snapshot"]

CONNECT_SECONDS = 5.0
"""How long the hub may take to answer before it counts as out of reach."""

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
SKIPPED = ["*/*", "consolidated*", "*.index.json.bak"]
HTTP_ERROR: type[Exception] = vars(errors)["HTTPError"]
NETWORK_ERRORS = (OSError, HTTP_ERROR)
"""What the hub client raises: `requests` errors are `OSError`s, `httpx` errors derive from `HTTPError`."""


def offline() -> bool:
    """Whether the user has told the hub client to stay off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def snapshot(repo: str, *, revision: str | None = None, weights: bool = True) -> tuple[Path, str]:
    """The folder that holds `repo`, and its commit hash.

    Args:
        repo: `ORGANISATION/NAME`, or the bare name of an old repository (`gpt2`).
        revision: Branch, tag or commit; the default branch if `None`.
        weights: Whether the weights are wanted too; without them the folder serves tokenizers and configs.

    Raises:
        ModelError: The repository does not exist, is closed to this user, or can be reached neither here nor
            there.
    """
    commit = _commit(repo, revision)
    options: dict[str, Any] = {
        "revision": commit or revision,
        "local_files_only": commit is None,
        "etag_timeout": CONNECT_SECONDS,
    }
    folder = _download(repo, SMALL_FILES, options)
    if weights:
        _download(repo, ["*.safetensors"], options)
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                "the model has no weights in safetensors; pickles are not opened, as they can run code",
                where=repo,
                remedy="take a revision with safetensors (many models have one among their pull requests), "
                "or convert it yourself",
            )
    return folder, commit or folder.name


def _commit(repo: str, revision: str | None) -> str | None:
    """The commit that `revision` names now; `None` when the hub cannot be asked."""
    if offline():
        return None
    where = repo if revision is None else f"{repo}@{revision}"
    try:
        sha = HfApi().model_info(repo, revision=revision, timeout=CONNECT_SECONDS).sha
        return None if sha is None else str(sha)
    except errors.GatedRepoError:
        remedy = f"accept its terms at https://huggingface.co/{repo}, then run: hf auth login"
        raise ModelError(
            "the model is gated and this machine has no access to it", where=where, remedy=remedy
        ) from None
    except errors.RepositoryNotFoundError:
        remedy = "check the spelling; a private model needs: hf auth login; a local folder is written ./NAME"
        raise ModelError("there is no such model on huggingface.co", where=where, remedy=remedy) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            "the model has no such revision", where=where, remedy="name a branch, a tag or a commit hash"
        ) from None
    except errors.HFValidationError as error:
        raise ModelError(
            f"not a model name: {_first_line(error)}", where=where, remedy="write ORGANISATION/NAME"
        ) from None
    except NETWORK_ERRORS:
        return None


def _download(repo: str, patterns: list[str], options: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=SKIPPED, **options))
    except errors.GatedRepoError:
        remedy = f"accept its terms at https://huggingface.co/{repo}, then run: hf auth login"
        raise ModelError(
            "the model is gated and this machine has no access to it", where=repo, remedy=remedy
        ) from None
    except errors.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if offline() else "huggingface.co cannot be reached"
        remedy = (
            "check the name and the network, pass a folder or a GGUF file, or use the default model: "
            "smollm2-135m"
        )
        raise ModelError(f"the model is not on this machine and {why}", where=repo, remedy=remedy) from None
    except (errors.HFValidationError, *NETWORK_ERRORS) as error:
        remedy = (
            "check the network and the free disk space, then try again: a download continues where it stopped"
        )
        raise ModelError(f"the download failed: {_first_line(error)}", where=repo, remedy=remedy) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
