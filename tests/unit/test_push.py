"""What `rlaif push` takes beside policies: reward models, trained judges and preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from spine import call

from rlaif.errors import ConfigError, DataError
from rlaif.pipeline import publish
from rlaif.pipeline.publish import prepare
from rlaif.report.model_card import has_licence

ROW = {
    "prompt": [{"role": "user", "content": "Name a fruit."}],
    "chosen": [{"role": "assistant", "content": "A pear."}],
    "rejected": [{"role": "assistant", "content": "A spoon."}],
    "judge": "small@1",
    "protocol": "pairwise",
    "audit": "trust",
    "constitution": "warmth",
    "constitution_digest": "f00d",
}


class FakeHub:
    """Keeps what it was asked."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def create_repo(self, repo: str, **options: Any) -> Any:
        FakeHub.calls.append((repo, options))

        class Made(str):
            repo_id = f"me/{repo}"

        return Made(f"https://hub/datasets/me/{repo}")

    def create_commit(self, **options: Any) -> None:
        FakeHub.calls.append(("commit", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    monkeypatch.setattr(publish, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    return FakeHub.calls


@pytest.fixture
def label(tmp_path: Path) -> Path:
    folder = tmp_path / "label"
    folder.mkdir()
    other = ROW | {"prompt": [{"role": "user", "content": "Name a tool."}]}
    text = "".join(json.dumps(row) + "\n" for row in (ROW, ROW, other))
    (folder / "preferences.jsonl").write_text(text)
    (folder / "verdicts.jsonl").write_text("{}\n")
    return folder


def model(folder: Path, about: str) -> Path:
    (folder / "model" / "adapter-0").mkdir(parents=True)
    for name in (about, "adapter-0/adapter_config.json", "README.md"):
        (folder / "model" / name).write_text("{}")
    (folder / "model" / "adapter-0" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "model" / "notes.key").write_text("private")
    return folder


@pytest.mark.parametrize("about", ["reward.json", "judge.json"])
@pytest.mark.parametrize("named", ["", "model"])
def test_a_reward_model_or_a_judge_is_uploaded_with_its_adapters(
    tmp_path: Path, about: str, named: str
) -> None:
    parcel = prepare(model(tmp_path / "stage", about) / named)
    names = {name for name, _ in parcel.files}
    adapter = {"adapter-0/adapter_config.json", "adapter-0/adapter_model.safetensors"}
    assert names == {about, "README.md"} | adapter
    assert parcel.kind == "model"


def test_a_reward_model_cannot_be_merged_not_even_in_a_dry_run(tmp_path: Path, label: Path) -> None:
    with pytest.raises(ConfigError, match="a reward model, a judge or a moderator"):
        prepare(model(tmp_path / "stage", "reward.json"), merge=True)
    said = call("push", label, "mine", "--merge", "--dry-run")
    assert said.status != 0
    assert "this is a file of preferences" in said.err


def test_the_card_of_labels_says_who_judged_how_many(label: Path) -> None:
    said: list[str] = []
    parcel = prepare(label, log=said.append)
    text = (label / "preferences.jsonl.card.md").read_text()
    for part in ("| preferences | 3 |", "| prompts | 2 |", "pairwise, audit: trust", "warmth", "f00d"):
        assert part in text, part
    assert not has_licence(text)
    assert "names no licence" in said[0]
    assert dict(parcel.files)["README.md"] == len(text.encode())


def test_labels_go_into_a_dataset_with_the_card_that_the_user_edited(
    label: Path, hub: list[tuple[str, dict[str, Any]]]
) -> None:
    prepare(label)
    card = label / "preferences.jsonl.card.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
    said = call("push", label / "preferences.jsonl", "labels", "--public")
    assert said.status == 0, said.err
    assert "uploaded to https://hub/datasets/me/labels" in said.out
    assert "licence" not in said.err
    (repo, made), (_, commit) = hub
    assert (repo, made) == ("labels", {"private": False, "exist_ok": True, "repo_type": "dataset"})
    assert (commit["repo_id"], commit["repo_type"]) == ("me/labels", "dataset")
    sent = {each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in commit["operations"]}
    assert sent == {
        "preferences.jsonl": (label / "preferences.jsonl").read_bytes(),
        "README.md": card.read_bytes(),
    }
    assert b"license: cc-by-4.0" in sent["README.md"]


def test_a_dry_run_of_labels_writes_nothing(label: Path) -> None:
    before = sorted(label.iterdir())
    said = call("push", label, "labels", "--dry-run")
    assert said.status == 0, said.err
    assert [line.split()[-1] for line in said.out.splitlines()[:-1]] == ["preferences.jsonl", "README.md"]
    assert sorted(label.iterdir()) == before


def test_a_file_without_preferences_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Name a fruit."}\n')
    with pytest.raises(DataError, match="these are no preferences: the columns are prompt"):
        prepare(file)
