"""What rlaif made, on the Hugging Face hub: a policy's adapter or the full model made of it, a reward model,
a trained judge, or a file of preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, errors

from rlaif.digest import digest
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.io.tables import read_table
from rlaif.io.writers import write_text
from rlaif.jobs.cards import judges_of, model_folder
from rlaif.jobs.merging import CARD, adapter_of, merge_adapter
from rlaif.report.dataset_card import DatasetCard, dataset_card_markdown
from rlaif.report.model_card import has_licence

__all__ = ["Upload", "prepare", "upload"]

HTTP_ERROR: type[Exception] = vars(errors)["HTTPError"]
WANTED = (".safetensors", ".json", ".md", ".jinja", ".model", ".txt")
"""What belongs to a model; anything else that lies in the folder stays here."""
PREFERENCES = "preferences.jsonl"

Log = Callable[[str], None]


class Upload(NamedTuple):
    """A folder, and its files that are uploaded, each with its size in bytes.

    Attributes:
        kind: Of the repository.
        card: Of a dataset: the file that becomes its README.md.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    kind: Literal["model", "dataset"] = "model"
    card: Path | None = None


def prepare(path: Path, *, merge: bool = False, write: bool = True, log: Log = lambda line: None) -> Upload:
    """What would be uploaded of `path`: a policy's adapter, or with `merge` the full model, which is made if
    it is not there yet; a reward model; a trained judge; a moderator; or the preferences of a label stage, or
    of a file.

    Args:
        write: Whether anything may be made: a full model, or a dataset's card beside its file.

    Raises:
        RlaifError: There is none of these, or it cannot be merged.
    """
    whole = None if path.is_file() else model_folder(path)
    labels = _labels_of(path)
    if merge and (whole or labels):
        what = "a file of preferences" if labels else "a reward model, a judge or a moderator"
        raise ConfigError(
            f"only a policy can be merged into its base, and this is {what}",
            where=str(path),
            remedy="leave --merge out",
        )
    if labels is not None:
        return _prepared_labels(labels, write=write, log=log)
    if whole is not None:
        return _prepared_model(whole, [each for each in whole.rglob("*") if each.is_file()], log)
    adapter = adapter_of(path)
    place = merge_adapter(adapter, log=log) if merge and write else adapter
    return _prepared_model(place, [each for each in place.iterdir() if each.is_file()], log)


def _prepared_model(place: Path, files: Sequence[Path], log: Log) -> Upload:
    wanted = sorted(path for path in files if path.suffix in WANTED)
    _check_licence(place / CARD, log)
    sizes = tuple((path.relative_to(place).as_posix(), path.stat().st_size) for path in wanted)
    return Upload(folder=place, files=sizes)


def _check_licence(card: Path, log: Log) -> None:
    if not card.is_file():
        log(f"{card.parent} has no model card: put a {CARD} beside its weights")
    elif not has_licence(card.read_text(encoding="utf-8")):
        log(
            f"{card} names no licence: choose one that the base model and the data allow, and add `license: "
            "…` to its first lines"
        )


# Labels


def _labels_of(path: Path) -> Path | None:
    """The file of preferences that `path` is, or that a label stage left in it."""
    if path.is_file():
        return path
    return path / PREFERENCES if (path / PREFERENCES).is_file() else None


def _prepared_labels(file: Path, *, write: bool, log: Log) -> Upload:
    # Not README.md: the folder may be one that has another.
    card = file.with_name(f"{file.name}.card.md")
    if not card.is_file():
        text = dataset_card_markdown(_card_of(file))
        if not write:
            log(f"a dataset card would be written to {card}")
            sizes = ((file.name, file.stat().st_size), (CARD, len(text.encode())))
            return Upload(folder=file.parent, files=sizes, kind="dataset", card=card)
        write_text(card, text)
    _check_licence(card, log)
    sizes = ((file.name, file.stat().st_size), (CARD, card.stat().st_size))
    return Upload(folder=file.parent, files=sizes, kind="dataset", card=card)


def _card_of(file: Path) -> DatasetCard:
    rows = [row.values for row in read_table(file).rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"these are no preferences: the columns are {', '.join(columns)}",
            where=str(file),
            remedy="name a file with `chosen` and `rejected`, as `rlaif label` writes it, or a folder",
        )
    named = {
        (str(row["constitution"]), str(row.get("constitution_digest", ""))): None
        for row in rows
        if row.get("constitution")
    }
    return DatasetCard(
        file=file.name,
        rows=len(rows),
        prompts=len({digest(row.get("prompt", row["chosen"])) for row in rows}),
        judges=judges_of([str(file)]),
        constitutions=list(named),
        columns=columns,
    )


# Uploading


def upload(parcel: Upload, repo: str, *, private: bool = True) -> str:
    """Make the repository unless it exists, upload the files in one commit, and return its address.

    The token is huggingface_hub's own: the variable HF_TOKEN, or what `hf auth login` keeps.

    Raises:
        ModelError: The hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        if parcel.kind == "dataset":
            return _upload_dataset(api, parcel, repo, private=private)
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


def _upload_dataset(api: HfApi, parcel: Upload, repo: str, *, private: bool) -> str:
    made = api.create_repo(repo, private=private, exist_ok=True, repo_type="dataset")
    places = {name: parcel.folder / name for name, _ in parcel.files if name != CARD}
    if parcel.card is not None:
        places[CARD] = parcel.card
    api.create_commit(
        repo_id=made.repo_id,
        repo_type="dataset",
        operations=[
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in places.items()
        ],
        commit_message="Upload by rlaif",
    )
    return str(made)
