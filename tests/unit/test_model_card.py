"""The model card of an adapter, and what is uploaded with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from spine import call

from rlaif.errors import DataError, ModelError
from rlaif.jobs.merging import adapter_of, origin_of
from rlaif.jobs.reward import RewardJob
from rlaif.pipeline import publish
from rlaif.pipeline.publish import prepare, upload
from rlaif.report.model_card import ModelCard, card_markdown, has_licence, merged_card

CARD = ModelCard(
    name="mine: ppo",
    kind="ppo",
    method="PPO",
    base="org/base-1b",
    revision="0123abcd",
    constitution=("warmth", "f00d"),
    judge="small@1, pointwise",
    data={"prompts": "abc", "rewards": "def"},
    settings={"steps": 14, "learning_rate": 3e-4, "ptx": None, "pattern": "a|b"},
    results={"reward": 0.51234567, "kl": 1.0},
)


FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def front(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return values


def test_a_card_says_what_the_adapter_was_made_of_and_how_to_load_it() -> None:
    text = card_markdown(CARD)
    for part in (
        "warmth (digest `f00d`)",
        "small@1, pointwise",
        "| prompts | abc |",
        "| reward | 0.5123 |",
        "| steps | 14 |",
        "`0123abcd`",
        'AutoModelForCausalLM.from_pretrained("org/base-1b")',
        "PeftModel.from_pretrained(model, folder)",
        "a\\|b",
        "## Licence",
    ):
        assert part in text, part
    assert "ptx" not in text
    assert front(text) == {
        "base_model": "org/base-1b",
        "library_name": "peft",
        "tags": ["rlaif", "lora", "ppo"],
    }


def test_loading_takes_two_lines_and_their_imports() -> None:
    code = card_markdown(CARD).split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.startswith("model = ")]) == 2
    compile(code, "card", "exec")


def test_a_folder_is_no_base_that_the_hub_knows() -> None:
    text = card_markdown(
        ModelCard(
            name="x", kind="dpo", method="DPO", base="/models/mine", revision="1", constitution=("a", "b")
        )
    )
    assert "base_model" not in front(text)
    assert "judge" not in text
    assert "## Results" not in text


def test_a_card_after_sft_tells_that_the_other_adapter_comes_first() -> None:
    first = ("sft", "more-sft")
    text = card_markdown(
        ModelCard(
            name="x",
            kind="ppo",
            method="PPO",
            base="org/b",
            revision="1",
            constitution=("a", "b"),
            first=first,
        )
    )
    assert (
        text.index("sft_folder).merge_and_unload()")
        < text.index("more_sft_folder")
        < text.index("model, folder)")
    )
    assert "rlaif push --merge" in text


def test_the_card_of_the_full_model_needs_no_adapter() -> None:
    text = merged_card(card_markdown(CARD))
    assert "PeftModel" not in text
    assert front(text)["library_name"] == "transformers"
    assert "AutoModelForCausalLM.from_pretrained(folder)" in text
    assert "## Results" in text
    assert "| steps | 14 |" in text
    assert merged_card("no such section") == "no such section"


def test_a_reward_model_is_loaded_by_rlaif() -> None:
    text = card_markdown(
        ModelCard(
            name="x",
            kind="reward",
            method="a reward model",
            loading=RewardJob.loading,
            base="org/b",
            revision="1",
            constitution=("a", "b"),
        )
    )
    assert "rlaif ppo --reward FOLDER" in text
    assert "PeftModel" not in text


def test_the_licence_is_the_users() -> None:
    text = card_markdown(CARD)
    assert not has_licence(text)
    assert has_licence(text.replace("---\n", "---\nlicense: apache-2.0\n", 1))
    assert not has_licence("license: mit in the text")


# Pushing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ppo" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base-1b"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text(card_markdown(CARD))
    (folder / "notes.key").write_text("private")
    return folder


class FakeHub:
    """Keeps what it was asked."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def create_repo(self, repo: str, **options: Any) -> Any:
        FakeHub.calls.append((repo, options))
        if repo == "taken":
            raise OSError("403 Forbidden\nmore")

        class Made(str):
            repo_id = f"me/{repo}"

        return Made(f"https://hub/me/{repo}")

    def upload_folder(self, **options: Any) -> None:
        FakeHub.calls.append(("upload", options))


def test_a_dry_run_lists_the_files_and_uploads_nothing(adapter: Path) -> None:
    said = call("push", adapter.parent, "me/mine", "--dry-run")
    assert said.status == 0
    assert [line.split()[-1] for line in said.out.splitlines()[:-1]] == FILES
    assert "nothing was uploaded" in said.out
    assert "names no licence" in said.err


def test_only_the_files_of_the_model_are_uploaded_to_a_private_repository(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    said = call("push", adapter, "mine")
    assert "uploaded to https://hub/me/mine" in said.out
    (repo, made), (_, uploaded) = FakeHub.calls
    assert (repo, made) == ("mine", {"private": True, "exist_ok": True})
    assert uploaded["repo_id"] == "me/mine"
    assert uploaded["folder_path"] == adapter
    assert uploaded["allow_patterns"] == FILES


def test_a_hub_that_refuses_is_told_in_one_line(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "HfApi", FakeHub)
    with pytest.raises(ModelError, match=r"403 Forbidden\n.*HF_TOKEN"):
        upload(prepare(adapter), "taken")


def test_a_folder_without_a_card_or_an_adapter_is_told(adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").unlink()
    said: list[str] = []
    prepare(adapter, log=said.append)
    assert "no model card" in said[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no adapter\n.*the folder of a stage"):
        adapter_of(tmp_path / "empty")


def test_a_run_in_place_of_its_stage_is_told_which_stages_have_adapters(tmp_path: Path) -> None:
    for stage in ("ppo", "dpo"):
        (tmp_path / stage / "adapter").mkdir(parents=True)
    (tmp_path / "label").mkdir()
    with pytest.raises(DataError, match=f"it is a run; name its stage: {tmp_path}/dpo, {tmp_path}/ppo$"):
        adapter_of(tmp_path)
    said = call("evaluate", "--policy", tmp_path, "--no-win-rate", "--out", tmp_path / "out")
    assert said.status == 1
    assert f"it is a run; name its stage: {tmp_path}/dpo" in said.err


def test_without_a_recipe_the_adapters_own_config_names_its_base(adapter: Path) -> None:
    assert origin_of(adapter).base == "org/base-1b"
    assert origin_of(adapter).first == ()
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(DataError, match=r"does not say which base|is damaged"):
        origin_of(adapter)


def test_the_recipe_of_the_run_names_base_and_what_was_merged_before(adapter: Path) -> None:
    run = adapter.parent.parent
    stages = "[{stage: revise}, {stage: sft}, {stage: sft, name: other, model: org/three}, {stage: ppo}]"
    text = f"model: org/two\ndtype: float32\nstages: {stages}\n"
    (run / "recipe.yaml").write_text(text)
    found = origin_of(adapter)
    assert (found.base, found.first, found.dtype) == ("org/two", (run / "sft" / "adapter",), "float32")
