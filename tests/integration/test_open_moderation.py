"""`rlaif serve --moderation`: what it opens, what it refuses, and that a trained moderator in a server says
what it says outside of one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tiny import save_tiny

from rlaif.cli.main import main
from rlaif.errors import ConfigError
from rlaif.models.open import open_engine
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.moderation.classifier import LoraModerator
from rlaif.moderation.files import save_moderator
from rlaif.moderation.probe import Heads, ProbeModerator
from rlaif.moderation.states import read_states
from rlaif.serving.cascade import Cascade
from rlaif.serving.moderating import Moderation
from rlaif.serving.opening import ModerationSettings, open_moderation
from rlaif.serving.residents import Residents, open_residents
from rlaif.serving.server import ModelServer, ServerSettings
from rlaif.types import Answers, Constitution, Message, Principle

QUESTION = (Message("user", "What is the yes in the other?"),)
ANSWERED = (*QUESTION, Message("assistant", "yes, the other"))
CALM = Constitution(
    "calm", (Principle("calm", question="Is the response calm?", answers=Answers(good="y", bad="n")),)
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("opening")
    save_tiny(root / "base")
    save_tiny(root / "flat" / "base", sharpness=1.0)  # whose labels are not too unlikely to be read
    (root / "list.txt").write_text("Wagner\n", "utf-8")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def base(folder: Path) -> SharedBase:
    return SharedBase.load(str(folder / "base"), dtype="float32", device="cpu")


def probe(base: SharedBase, *, threshold: float = 0.5) -> ProbeModerator:
    """Two heads of random directions on both layers; the second flags nothing."""

    def heads(offset: float) -> Heads:
        directions = torch.randn(2, 2 * base.hidden_size, generator=torch.Generator().manual_seed(3))
        return Heads(directions, torch.zeros(2), torch.ones(2), torch.full((2,), offset))

    return ProbeModerator(
        base=base,
        categories=("calm", "never"),
        thresholds={"calm": threshold, "never": 2.0},
        layers=(1, 2),
        heads={"prompt": heads(-1e6), "exchange": heads(0.0)},
        window=4,
    )


@contextmanager
def running(residents: Residents, moderation: Moderation | None) -> Iterator[ModelServer]:
    server = ModelServer(residents, ServerSettings(port=0), lambda line: None, moderation=moderation)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)


@contextmanager
def served(folder: Path, moderation: Any) -> Iterator[ModelServer]:
    """A server of the base, with what `moderation` makes of it."""
    residents = open_residents(str(folder / "base"), [], dtype="float32", device="cpu")
    with running(residents, moderation(residents.base)) as server:
        yield server


def asked(server: ModelServer, folder: Path, **more: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as api:
        return api.chat.completions.create(
            model=str(folder / "base"),
            messages=[turn.as_dict() for turn in QUESTION],  # type: ignore[misc]
            temperature=0,
            max_tokens=24,
            **more,
        )


def test_a_trained_moderator_blocks_where_it_says(folder: Path, base: SharedBase) -> None:
    """Its scores while the server decodes are those of its own pass over the same tokens: the answer is
    blocked at the token at which that says so."""
    moderator = probe(base)
    save_moderator(moderator, folder / "moderator", constitution="", probes=[ANSWERED])
    with served(folder, lambda base: None) as server:
        plain = asked(server, folder)
        ids = server.batcher.form.encode([server.batcher.form.render(QUESTION)])[0]
    answer = base.tokenizer(plain.choices[0].message.content, add_special_tokens=False)["input_ids"]
    assert len(answer) > 10
    (text,) = [moderator.encoder.encode([*QUESTION, Message("assistant", plain.choices[0].message.content)])]
    assert text.ids[: text.start] == tuple(ids)
    ((_, states),) = next(read_states(base, [text], moderator.layers)).items()
    watch = moderator.watch(QUESTION)
    path = [watch.push("", token.reshape(2, -1))["calm"] for token in states]
    limit = sorted(path)[len(path) // 2]
    place = next(at for at, score in enumerate(path, 1) if score >= limit - 1e-4)

    def opened(base: SharedBase) -> Moderation:
        settings = ModerationSettings([folder / "moderator", folder / "list.txt"], hold=1)
        made = open_moderation(settings, base)
        assert made is not None
        assert made.moderator.categories == ("calm", "never", "list")
        (mine, _) = made.moderator.moderators  # type: ignore[attr-defined]
        object.__setattr__(mine, "thresholds", {"calm": limit - 1e-4, "never": 2.0})
        return made

    with served(folder, opened) as server:
        made = asked(server, folder)
    choice = made.choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.moderation["category"] == "calm"
    assert choice.moderation["score"] == pytest.approx(path[place - 1], abs=1e-3)
    released = base.tokenizer.decode(answer[: place - 1])
    assert choice.message.content.startswith(released)
    assert made.usage.completion_tokens - place in (0, 1)  # one was drawn before the last was read


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_moderator_that_reads_the_text_now_and_then(folder: Path, at: int) -> None:
    """An adapter on the served base, beside the policy that decodes: what it has not read is held, also with
    a hold of 1; the end of an answer is read; and the policy answers as it does without."""
    residents = open_residents(str(folder / "base"), [], dtype="float32", device="cpu")
    base = residents.base
    for role in ("policy", "moderator-0"):
        base.add_adapter(role, LoraSettings(rank=2), train=False)
        draw = torch.Generator().manual_seed(len(role))
        for weight in base.trainable(role):
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.3)
    residents = replace(residents, roles={str(folder / "base"): "policy"})
    with running(residents, None) as server:
        plain = asked(server, folder, seed=1, n=1).choices[0].message.content
    reader = NowAndThen(base, block_at=0)
    with running(residents, Moderation(reader, hold=1)) as server:
        moderated = asked(server, folder, seed=1).choices[0]
    assert moderated.message.content == plain
    assert reader.read[-1] == plain.rstrip("\ufffd")  # what is no character yet stays unread
    assert moderated.finish_reason == "length"
    assert len(reader.read) == 3 + 24 // WINDOW  # prompt, first token, each window, end
    texts = reader.read[1:]
    reader = NowAndThen(base, block_at=at)
    with running(residents, Moderation(reader, hold=1)) as server:
        blocked = asked(server, folder, seed=1).choices[0]
    assert blocked.finish_reason == "content_filter"
    assert blocked.moderation == {"category": "calm", "score": 1.0}
    assert blocked.message.content.partition("\n\n[What stood")[0] == texts[at - 1]
    assert texts[at] != texts[at - 1]


WINDOW = 10


class NowAndThen(LoraModerator):
    """Flags the answer when it is read for the `block_at`-th time after the first; 0 is never."""

    def __init__(self, base: SharedBase, *, block_at: int) -> None:
        def heads() -> Heads:
            return Heads(torch.zeros(1, base.hidden_size), torch.zeros(1), torch.ones(1), torch.zeros(1))

        both: dict[Any, Heads] = {"prompt": heads(), "exchange": heads()}
        super().__init__(base, "moderator-0", ("calm",), {"calm": 0.9}, both, WINDOW)
        object.__setattr__(self, "read", [])
        object.__setattr__(self, "block_at", block_at)

    read: list[str]
    block_at: int

    def scores(self, conversations: Any) -> Any:
        (found,) = super().scores(conversations)  # the adapter runs, whatever it says
        assert found == {"calm": 0.5}
        (turns,) = conversations
        self.read.append(turns[-1].content)
        return [{"calm": float(self.block_at > 0 and len(self.read) == 2 + self.block_at)}]


def test_the_served_base_as_judge_says_what_it_says_alone(folder: Path) -> None:
    folder = folder / "flat"
    base = SharedBase.load(str(folder / "base"), dtype="float32", device="cpu")
    alone = Cascade(open_engine(str(folder / "base"), dtype="float32", device="cpu"), CALM)
    odds = alone._odds(QUESTION, "yes", CALM.principles)
    assert None not in odds
    save_moderator(probe(base), folder / "judged", constitution="", probes=[ANSWERED])
    settings = ModerationSettings([folder / "judged"], judge="self", constitution=CALM)

    def opened(base: SharedBase) -> Moderation:
        made = open_moderation(settings, base)
        assert made is not None
        assert made.cascade is not None
        found = made.cascade._odds(QUESTION, "yes", CALM.principles)
        assert found == pytest.approx(odds, abs=1e-3)
        return replace(made, moderator=probe(base, threshold=1e-30))

    with served(folder, opened) as server:
        choice = asked(server, folder).choices[0]
        assert server._moderation is not None
        assert server._moderation.cascade is not None
        counts = dict(line.split() for line in server._moderation.cascade.lines() if line[0] != "#")
    assert int(counts["rlaif_cascade_asked_total"]) >= 1
    blocked = choice.finish_reason == "content_filter"
    assert blocked == (counts["rlaif_cascade_asked_total"] != counts["rlaif_cascade_released_total"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"moderators": [], "judge": "self", "constitution": CALM}, "nothing is moderated"),
        ({"moderators": ["list.txt"], "judge": "self"}, "it needs --constitution"),
        ({"moderators": ["list.txt"], "constitution": CALM}, "it needs --cascade"),
        ({"moderators": ["empty"]}, "there is no moderator in"),
        ({"moderators": ["none.yaml"]}, "there is nothing at"),
        ({"moderators": ["list.txt", "list.txt"]}, "two moderators have a category 'list'"),
        (
            {"moderators": ["list.txt"], "judge": "self", "constitution": CALM},
            "the judge would never be asked: no category (list)",
        ),
    ],
)
def test_what_cannot_be_moderated_is_said(
    folder: Path, base: SharedBase, settings: dict[str, Any], says: str
) -> None:
    paths = [folder / name for name in settings.pop("moderators")]
    with pytest.raises(ConfigError) as refused:
        open_moderation(ModerationSettings(paths, **settings), base)
    assert says in str(refused.value)


def test_the_command_line_moderates(folder: Path) -> None:
    command = [sys.executable, "-m", "rlaif", "serve", "--model", str(folder / "base"), "--port", "0"]
    command += ["--moderation", str(folder / "list.txt"), "--hold", "2", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            said = [next(process.stdout) for _ in range(3)]
            assert said[1] == "moderated: list\n"
            url = said[2].split()[1]
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as api:
                made = api.chat.completions.create(
                    model=str(folder / "base"),
                    messages=[{"role": "user", "content": "a song by W\u00e1gner"}],
                )
                assert made.choices[0].finish_reason == "content_filter"
                assert api.moderations.create(input="none").results[0].flagged is False
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_a_bad_block_list_ends_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text("entries:\n  - regex: '('\n", "utf-8")
    with pytest.raises(SystemExit):
        main(
            [
                "serve",
                "--model",
                str(folder / "base"),
                "--port",
                "0",
                "--moderation",
                str(folder / "bad.yaml"),
            ]
        )
    assert "bad.yaml:2: not a regex of Python" in capsys.readouterr().err
