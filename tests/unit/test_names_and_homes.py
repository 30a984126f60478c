"""Names that are taken, keys that are given where a name is due, and machines without a home folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from spine import call

from rlaif.config import parse_recipe
from rlaif.errors import ConfigError, ModelError
from rlaif.models.gguf import cache_folder


@pytest.mark.parametrize(
    "name", ["superseded", "tracking", "-rf", ".work-x", "run.json", "a/b", "..", "A", "x\ny"]
)
def test_a_stage_takes_no_name_that_is_another_thing(name: str) -> None:
    with pytest.raises(ConfigError):
        parse_recipe(f"stages: [{{stage: sample, name: {name!r}}}]", source="r.yaml")


def test_a_key_in_the_place_of_a_variables_name_is_refused_and_shown_nowhere(tmp_path: Path) -> None:
    secret = "sk-abcdefghijklmnopqrstuvwxyz012345"
    said = call(
        "sample", "--policy", "scripted", "--limit", 2, "--api-key-env", secret, "--out", tmp_path / "run"
    )
    assert said.status == 1
    assert "not the name of an environment variable" in said.err
    assert secret not in said.err + said.out
    assert not (tmp_path / "run").exists()


def test_without_a_home_the_remedy_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("HOME", "XDG_CACHE_HOME", "RLAIF_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ModelError, match="RLAIF_CACHE"):
        cache_folder()
    monkeypatch.setenv("RLAIF_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
