"""An adapter, or the full model made of it, on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, errors

from rlaif.errors import ModelError
from rlaif.jobs.merging import CARD, adapter_of, merge_adapter
from rlaif.report.model_card import has_licence

__all__ = ["Upload", "prepare", "upload"]

HTTP_ERROR: type[Exception] = vars(errors)["HTTPError"]
WANTED = (".safetensors", ".json", ".md", ".jinja", ".model", ".txt")
"""What belongs to a model; anything else that lies in the folder stays here."""


class Upload(NamedTuple):
    """A folder, and its files that are uploaded, each with its size in bytes."""

    folder: Path
    files: tuple[tuple[str, int], ...]


def prepare(folder: Path, *, merge: bool = False, log: Callable[[str], None] = lambda line: None) -> Upload:
    """What would be uploaded of `folder`: the adapter, or with `merge` the full model, which is made if it is
    not there yet.

    Raises:
        RlaifError: There is no adapter, or it cannot be merged.
    """
    adapter = adapter_of(folder)
    place = merge_adapter(adapter, log=log) if merge else adapter
    files = sorted(path for path in place.iterdir() if path.is_file() and path.suffix in WANTED)
    card = place / CARD
    if not card.is_file():
        log(f"{place} has no model card: put a {CARD} beside the adapter")
    elif not has_licence(card.read_text(encoding="utf-8")):
        log(
            f"{card} names no licence: choose one that the base model and the data allow, and add `license: "
            "…` to its first lines"
        )
    return Upload(folder=place, files=tuple((path.name, path.stat().st_size) for path in files))


def upload(parcel: Upload, repo: str, *, private: bool = True) -> str:
    """Make the repository unless it exists, upload the files in one commit, and return its address.

    The token is huggingface_hub's own: the variable HF_TOKEN, or what `hf auth login` keeps.

    Raises:
        ModelError: The hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        names = [name for name, _ in parcel.files]
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=parcel.folder,
            allow_patterns=names,
            commit_message="Upload by rlaif",
        )
    except (errors.HFValidationError, OSError, HTTP_ERROR) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "check the name, the network, and the token: set HF_TOKEN, or run `hf auth login`"
        raise ModelError(f"the upload failed: {first}", where=repo, remedy=remedy) from None
    return str(made)
