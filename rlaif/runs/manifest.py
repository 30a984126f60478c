"""The manifest of a finished stage: what went in, what ran, what came out. With it a run can be told apart,
and run again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlaif import __version__
from rlaif.digest import digest
from rlaif.errors import RunError
from rlaif.files import parse_object, read_small
from rlaif.runs.disk import run_errors, write_whole

__all__ = [
    "MANIFEST",
    "Git",
    "Manifest",
    "Output",
    "changed_parts",
    "damaged_outputs",
    "describe_outputs",
    "first_problem",
    "git_state",
    "host_facts",
    "stage_key",
    "versions",
]

MANIFEST = "manifest.json"
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "pyarrow",
)
GIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Output:
    """A file of the stage: rows (`None` where it has none), the SHA-256 of its bytes, and their number
    (`None` before 0.2)."""

    sha256: str
    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Git:
    """The revision of the working tree that the command ran in, and whether it had changes that are not
    committed."""

    revision: str
    dirty: bool


@dataclass(frozen=True)
class Manifest:
    """Everything about one finished stage.

    Attributes:
        stage: Its name in the recipe, and of its folder.
        kind: `sample`, `revise`, `label`, …
        key: `stage_key(parts)`; a stage with the same key need not run again.
        parts: What the result depends on, by a name in plain words: a digest or a short value each.
        config: The resolved settings.
        models: Who played which role, as `name@revision`.
        versions: Of Python and the packages.
        host: CPUs and platform.
        started, finished: UTC, ISO 8601.
        seconds: Wall-clock time of the run that finished the stage.
        counts: Whole numbers that add up; what they count is the stage's matter.
        outputs: By file name; the first one is the stage's main result.
        planned_bytes: The most memory that the stage was planned to hold; 0 where it has no plan.
        gaps: Questions that got no answer for a reason that may pass; with any, the same command runs the
            stage again.
        peak_bytes: The most that it held: tensors on a GPU, the whole process on a CPU; 0 where the system
            does not say.
    """

    stage: str
    kind: str
    key: str
    parts: Mapping[str, str]
    config: Mapping[str, Any]
    models: Mapping[str, str]
    started: str
    finished: str
    seconds: float
    counts: Mapping[str, int]
    outputs: Mapping[str, Output]
    planned_bytes: int = 0
    peak_bytes: int = 0
    gaps: int = 0
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    git: Git | None = field(default_factory=lambda: git_state())
    host: Mapping[str, Any] = field(default_factory=lambda: host_facts())

    @property
    def rows(self) -> int | None:
        """Rows of the main result."""
        return next(iter(self.outputs.values())).rows if self.outputs else None

    def write_json(self, path: Path) -> None:
        """Write it, indented, to be read by people too.

        Raises:
            RunError: The disk refuses.
        """
        write_whole(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")

    @classmethod
    def read_json(cls, path: Path) -> Manifest:
        """Read a manifest; keys that a newer rlaif added are left out.

        Raises:
            RunError: There is none, or it is damaged.
        """
        try:
            values = parse_object(read_small(path, error=RunError))
            known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
            return TypeAdapter(cls).validate_python(known)
        except OSError as error:
            raise RunError(
                f"no manifest ({error.strerror})", where=str(path), remedy="run the stage again"
            ) from error
        except ValueError as error:
            what = f"the manifest is damaged ({first_problem(error)})"
            raise RunError(what, where=str(path), remedy="run the stage again") from error


def first_problem(error: ValueError) -> str:
    """What is wrong with a value that was read from a file, in a line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def describe_outputs(folder: Path, rows: Mapping[str, int]) -> dict[str, Output]:
    """Every file of a stage's folder (but the manifest) with its digest: first those of `rows`, in that
    order, then the others.

    Raises:
        RunError: A file cannot be read, or one of `rows` is not there.
    """
    others = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    outputs = {}
    for name in dict.fromkeys([*rows, *others]):
        if name != MANIFEST:
            with run_errors("read the stage's file", folder / name), (folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                outputs[name] = Output(
                    sha256=hashlib.file_digest(file, "sha256").hexdigest(), rows=rows.get(name), bytes=size
                )
    return outputs


def damaged_outputs(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files of a finished stage: a line for each that is missing, or is not as it was
    written.

    Markdown is left out: it is for people, who may add a licence to a model card. The size is looked at
    first.
    """
    found = []
    for name, output in manifest.outputs.items():
        path = folder / name
        if path.suffix == ".md":
            continue
        try:
            with path.open("rb") as file:
                whole = output.bytes in (None, os.fstat(file.fileno()).st_size)
                if not whole or hashlib.file_digest(file, "sha256").hexdigest() != output.sha256:
                    found.append(f"{name} was changed after it was written")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def stage_key(parts: Mapping[str, str]) -> str:
    """The key of a stage: a digest of all that its result depends on."""
    return digest(dict(parts))


def changed_parts(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Why a stage must run again, a part each: `constitution changed`, `judge was added`,
    `limit was removed`."""
    told = [f"{name} changed" for name in new if name in old and old[name] != new[name]]
    told += [f"{name} was added" for name in new if name not in old]
    return told + [f"{name} was removed" for name in old if name not in new]


def versions() -> dict[str, str]:
    """Versions of rlaif, Python and the packages that are installed; none of them is imported."""
    found = {"rlaif": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> Git | None:
    """The revision of the working tree around `folder` (the working directory); `None` where there is none,
    or no git."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    return Git(revision=revision, dirty=bool(_git(folder, "status", "--porcelain")))


def host_facts() -> dict[str, Any]:
    """CPUs and platform; no host name, no user name."""
    return {"cpus": os.cpu_count(), "platform": platform.platform(), "machine": platform.machine()}


def _git(folder: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
