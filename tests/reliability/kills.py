"""Runs that are killed several times and started again: they must end as the undisturbed run did.

Each `Scenario` is one command of the chain on a tiny model or a scripted one. `Yard` runs it undisturbed
once; `Yard.harass` runs it again in a fresh folder, kills it a few times (half of the kills right before a
file operation, half after a time, some by SIGTERM or SIGINT), lets it end, and lists what is not as it was:
files, counts of questions, leftovers, or what `run.json` says.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import killing
from hostile_inputs import SCRIPTED, Workshop
from misbehaving import MisbehavingServer
from spine import BATCH, asked_of

__all__ = ["SCENARIOS", "Killed", "Yard"]

SECONDS = 120.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CONCURRENCY = 16

RECIPE = """
name: chain
model: {model}
dtype: float32
constitution: {constitution}
stages:
  - {{stage: sample, prompts: "builtin:everyday", split: label, limit: 8, k: 3, max_new_tokens: 6, policy: {scripted}}}
  - {{stage: label, principles: all, judge: {scripted}}}
  - {{stage: reward, lora_rank: 2}}
  - stage: ppo
    prompts: "builtin:everyday"
    split: rl
    limit: 2
    steps: 2
    episodes: 2
    max_new_tokens: 3
    lora_rank: 2
    checkpoint_every: 1
  - stage: evaluate
    prompts: "builtin:everyday"
    split: eval
    limit: 2
    policies: [ppo]
    samples: 1
    max_new_tokens: 3
    win_rate: false
"""


@dataclass(frozen=True)
class Scenario:
    """One command.

    Attributes:
        arguments: Of the command, given the workshop, the run's folder and a server's address.
        asks: Questions at a time, of those that scripted engines or the server note; 0 where none are noted.
    """

    name: str
    arguments: Callable[[Workshop, Path, str], tuple[object, ...]]
    asks: int = 0


def _tiny(shop: Workshop, out: Path, *rest: object) -> tuple[object, ...]:
    return (*shop.model, "--set", "lora_rank=2", *rest, "--out", out)


def _chain(shop: Workshop, out: Path, _url: str) -> tuple[object, ...]:
    recipe = shop.examples / "chain.yaml"
    if not recipe.exists():
        recipe.write_text(
            RECIPE.format(
                model=shop.file("model"), constitution=shop.file("constitution.yaml"), scripted=SCRIPTED
            ),
            encoding="utf-8",
        )
    return ("run", recipe, "--out", out)


SCENARIOS = (
    Scenario(
        "label",
        lambda shop, out, _url: (
            "label",
            "--prompts",
            "builtin:everyday",
            "--limit",
            12,
            "--k",
            3,
            "--constitution",
            shop.file("constitution.yaml"),
            "--model",
            SCRIPTED.replace("swift", "slow"),
            "--out",
            out,
        ),
        asks=BATCH,
    ),
    Scenario(
        "served label",
        lambda shop, out, url: (
            "label",
            "--responses",
            shop.file("responses.jsonl"),
            "--constitution",
            shop.file("constitution.yaml"),
            "--principles",
            "all",
            "--judge",
            "openai:toy",
            "--base-url",
            url,
            "--server",
            "reads=logprobs",
            "--server",
            "continues=false",
            "--out",
            out,
        ),
        asks=CONCURRENCY,
    ),
    Scenario(
        "reward",
        lambda shop, out, _url: (
            "reward",
            "--preferences",
            shop.file("preferences.jsonl"),
            *_tiny(shop, out),
        ),
    ),
    Scenario(
        "best of K",
        lambda shop, out, _url: (
            "best-of-k",
            "--reward",
            shop.file("rewarded/reward/model"),
            "--prompts",
            shop.file("prompts.jsonl"),
            "--k",
            2,
            "--max-new-tokens",
            4,
            *_tiny(shop, out),
        ),
    ),
    Scenario(
        "PPO",
        lambda shop, out, _url: (
            "ppo",
            "--reward",
            shop.file("rewarded/reward/model"),
            "--prompts",
            shop.file("prompts.jsonl"),
            "--steps",
            4,
            "--episodes",
            2,
            "--max-new-tokens",
            3,
            *_tiny(shop, out, "--set", "checkpoint_every=1"),
        ),
    ),
    Scenario(
        "DPO",
        lambda shop, out, _url: ("dpo", "--preferences", shop.file("preferences.jsonl"), *_tiny(shop, out)),
    ),
    Scenario("SFT", lambda shop, out, _url: ("sft", "--data", shop.file("rows.jsonl"), *_tiny(shop, out))),
    Scenario("a whole recipe", _chain, asks=BATCH),
)


@dataclass
class Killed:
    """What became of one run: how often it was killed, and what is wrong in the end."""

    scenario: str
    at_operations: int = 0
    at_times: int = 0
    points: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All of them."""
        return self.at_operations + self.at_times


@dataclass(frozen=True)
class _Calm:
    files: dict[str, Any]
    operations: int
    seconds: float
    asked: int
    paid: int


class Yard:
    """Where runs are killed. Use it as a context: a server that judges stands behind it.

    Args:
        folder: For the inputs and the runs.
    """

    def __init__(self, folder: Path) -> None:
        self.shop = Workshop(folder)
        warm = killing.start(
            ("--version",), below=folder, said=folder / "warm"
        )  # imports torch where the others are forked
        warm.join(SECONDS)
        self._folder = folder
        self._server = MisbehavingServer(work=0.002)
        self._calm: dict[str, _Calm] = {}

    def __enter__(self) -> Yard:
        self._server.__enter__()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._server.__exit__(None, None, None)

    def calm(self, scenario: Scenario) -> _Calm:
        """The undisturbed run of a scenario, made once."""
        if scenario.name not in self._calm:
            place = self._folder / f"calm-{len(self._calm)}"
            began = time.monotonic()
            process, asked, before = (
                self._start(scenario, place, None),
                place / "asked",
                len(self._server.asked),
            )
            process.join(SECONDS)
            seconds = time.monotonic() - began
            if process.exitcode != 0:
                raise AssertionError(
                    f"{scenario.name}, undisturbed: {process.exitcode}: {(place / 'said').read_text()}"
                )
            questions = len(asked_of(asked)) + len(self._server.asked) - before
            self._calm[scenario.name] = _Calm(
                killing.results(place / "run"),
                killing.operations(place / "said"),
                seconds,
                questions,
                _requests(place / "run"),
            )
        return self._calm[scenario.name]

    def harass(self, scenario: Scenario, *, kills: int, rng: random.Random, name: str) -> Killed:
        """Run it in a fresh folder, kill it `kills` times if it lasts so long, and let it end."""
        calm, place = self.calm(scenario), self._folder / name
        found, before = Killed(scenario.name), len(self._server.asked)
        for number in range(kills):
            at_operation = rng.randint(1, max(1, calm.operations)) if number % 2 else None
            process = self._start(scenario, place, at_operation)
            if at_operation is None:
                after, with_ = rng.uniform(0.0, calm.seconds), rng.choice(SIGNALS)
                process.join(after)
                point = f"{with_.name} after {after:.2f} s"
                if process.is_alive() and process.pid:
                    process.terminate() if with_ is signal.SIGTERM else _send(process, with_)
            else:
                point = f"operation {at_operation}"
            process.join(SECONDS)
            if process.exitcode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 143):
                found.at_operations += at_operation is not None
                found.at_times += at_operation is None
                found.points.append(point)
            elif process.exitcode != 0 and _last(
                place / "said"
            ):  # without a word: a signal before it had begun
                found.wrong.append(f"{point}: exit status {process.exitcode}: {_last(place / 'said')}")
        process = self._start(scenario, place, None)
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            found.wrong.append("no end")
        elif process.exitcode != 0:
            found.wrong.append(f"in the end exit status {process.exitcode}: {_last(place / 'said')}")
        else:
            found.wrong += killing.changed_files(calm.files, killing.results(place / "run"))
            found.wrong += _wrong_record(place / "run")
            if (spent := _requests(place / "run")) < calm.paid:
                found.wrong.append(f"{spent} requests in the account instead of {calm.paid} or more")
        asked = len(asked_of(place / "asked")) + len(self._server.asked) - before
        if scenario.asks and not calm.asked <= asked <= calm.asked + scenario.asks * found.kills:
            found.wrong.append(f"{asked} questions instead of {calm.asked} after {found.kills} kills")
        return found

    def _start(self, scenario: Scenario, place: Path, die_at: int | None) -> ForkServerProcess:
        place.mkdir(exist_ok=True)
        (place / "said").unlink(missing_ok=True)
        return killing.start(
            scenario.arguments(self.shop, place / "run", self._server.url),
            below=place,
            said=place / "said",
            asked=place / "asked",
            die_at=die_at,
        )


def _send(process: ForkServerProcess, number: signal.Signals) -> None:
    try:
        os.kill(process.pid or 0, number)
    except ProcessLookupError:
        return


def _last(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return " / ".join(lines[-3:])


def _requests(run: Path) -> int:
    """Requests in the run's account; 0 where it has none."""
    account = run / "spending.jsonl"
    lines = account.read_text(encoding="utf-8").splitlines() if account.exists() else []
    return sum(json.loads(line)["requests"] for line in lines)


def _wrong_record(run: Path) -> list[str]:
    """What `run.json` says that is not so."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    stages = sorted(path.parent.name for path in run.glob("*/manifest.json"))
    wrong = [] if record["status"] == "finished" else [f"run.json says {record['status']}"]
    if sorted(stage["name"] if isinstance(stage, dict) else stage for stage in record["stages"]) != stages:
        wrong.append(f"run.json names the stages {record['stages']}, there are {stages}")
    return wrong
