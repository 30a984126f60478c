"""What servers say of themselves is held against the base before anything is sampled, and refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from served_policy import FakeVllm, Faults
from tiny import save_tiny
from toy_policy import toy_base

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.chat import ChatFormat
from rlaif.errors import ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.rl.served import ServedSampler
from rlaif.rl.serving.checks import Expected, other_base

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of PEFT, as it reads adapters for the stand-in.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

HUB, COMMIT, OTHER = "org/model", "a" * 40, "b" * 40


def check(faults: Faults, folder: Path, *, base: SharedBase | None = None, rank: int = 4) -> FakeVllm:
    """Look at a server as before a rollout."""
    base = base or toy_base()
    with FakeVllm(base, faults) as server:
        sampler = ServedSampler(
            base,
            RolloutSettings(base_urls=(server.url,), retries=1, backoff=0.01),
            folder=folder,
            max_new_tokens=6,
            temperature=1.0,
            lora=LoraSettings(rank=rank, alpha=8.0),
        )
        try:
            sampler.check()
        finally:
            sampler.close()
            assert server.adapters == {}, "the adapters of the probe are gone"
            assert list(folder.iterdir()) == []
            assert base.roles == ()
    return server


def test_every_end_and_every_control_token_is_tried(tmp_path: Path) -> None:
    server = check(Faults(), tmp_path)
    assert sorted(body["allowed_token_ids"] for body in server.looked_at) == [[0], [1], [2], [3]]
    assert {body["model"] for body in server.looked_at} == {"base"}


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(vocabulary=24), "vocabulary of 24 tokens, the base here one of 20"),
        (Faults(cuts=True), r"tokenizer cuts a text .* token 2 is \d+ \('.*'\) there and \d+ \('.*'\) here"),
        (Faults(renders=True), r"chat template renders a turn .* token 2 is"),
        (Faults(ends=3), r"ends a turn at token 3 \('<\|assistant\|>'\), and the base here does not"),
        (Faults(ignores=1), r"does not end a turn at token 1 \('<\|end\|>'\), and the base here does"),
        (Faults(max_rank=2), "its rank is 4, and the server takes 2 at most"),
        (Faults(targets=("q_proj", "v_proj")), "no place for adapters on: down_proj, gate_proj, k_proj"),
    ],
    ids=["vocabulary", "tokenizer", "template", "ends", "ignores", "rank", "targets"],
)
def test_a_server_that_does_not_fit_is_refused_in_words(faults: Faults, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check(faults, tmp_path)
    assert caught.value.where.startswith("http://127.0.0.1:")
    assert caught.value.remedy


def test_weights_in_another_folder_are_looked_at(tmp_path: Path) -> None:
    own, same, other, adapters = (tmp_path / name for name in ("own", "same", "other", "adapters"))
    adapters.mkdir()
    save_tiny(own)
    shutil.copytree(own, same)
    shutil.copytree(own, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: x * 1.01 for name, x in weights.items()}, other / "model.safetensors", {"format": "pt"})
    base = SharedBase.load(str(own), dtype="float32")
    for root in (own, same, tmp_path / "not-here"):
        check(Faults(root=str(root)), adapters, base=base)
    with pytest.raises(ModelError, match=r"serves another base: the weights in .*other are not those in"):
        check(Faults(root=str(other)), adapters, base=base)


@pytest.mark.parametrize(
    ("root", "name", "revision", "words"),
    [
        ("", HUB, COMMIT, ""),
        (HUB, HUB, COMMIT, ""),
        ("Org/Model", HUB, COMMIT, ""),
        ("org/other", HUB, COMMIT, "org/other, and here it is org/model"),
        ("org/other", "smollm2-135m", "0123456789abcdef", ""),
        ("org/other", HUB, "", ""),
        (f"/hub/models--org--model/snapshots/{COMMIT}", HUB, COMMIT, ""),
        (
            f"/hub/models--org--model/snapshots/{OTHER}",
            HUB,
            COMMIT,
            "commit bbbbbbbbbbbb, and here it is aaaa",
        ),
        (f"/hub/models--org--model/snapshots/{OTHER}", HUB, "0123456789abcdef", ""),
    ],
)
def test_what_a_server_loaded(root: str, name: str, revision: str, words: str) -> None:
    form = ChatFormat(toy_base().tokenizer)
    expected = Expected(name=name, revision=revision, form=form, vocabulary=20, ends=frozenset({1}))
    found = other_base(root, expected)
    assert found.startswith(words) if words else found == ""
