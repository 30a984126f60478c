"""The flywheel, turned by people who are scripted: serve, collect, export, train, serve.

    python benchmarks/flywheel.py OUT [--rounds 3] [--prompts 64] [--tokens 40] [--recipe FILE]

Runs the commands that a person would type, in the folder OUT. In every round `--prompts` people ask a
built-in everyday message each, get two answers of the policy that is served, and say which one is better: the
one that VADER finds the more positive; alike within 0.05 is a tie. A thumb says the same of each answer
alone. The votes are exported, and the recipe's next round learns from them. Prints what entered each round
beside what was collected, and gold (VADER) of each round's policy on prompts that nobody asked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from rlaif.config.labelling import SampleConfig
from rlaif.jobs.inputs import load_prompts
from rlaif.metrics import vader_compound
from rlaif.progress import NoProgress
from rlaif.types import Completion, Prompt

MODEL = "smollm2-135m"
ALIKE = 0.05
AT_ONCE = 16


def rlaif(*arguments: object, folder: Path) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", *map(str, arguments)],
        cwd=folder,
        env=_environment(),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


@contextmanager
def served(folder: Path, policy: Path | None) -> Iterator[openai.OpenAI]:
    """A server that collects into OUT/chats.sqlite, and a client of it."""
    what = ["--model", MODEL] if policy is None else ["--model", MODEL, "--policy", f"now={policy}"]
    command = [sys.executable, "-m", "rlaif", "serve", *what, "--port", "0", "--collect", "chats.sqlite"]
    with (
        (folder / "server.log").open("a") as log,
        subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = next(line.split()[1] for line in process.stdout if line.startswith("serving "))
            with openai.OpenAI(base_url=address, api_key="none", timeout=600) as api:
                yield api
        finally:
            process.terminate()
            process.wait(60)


def visit(api: openai.OpenAI, model: str, prompt: Prompt, *, user: str, tokens: int) -> None:
    """One person: a message, two answers, a preference and two thumbs."""
    messages: Any = [message.as_dict() for message in prompt.messages]
    found = []
    for _ in range(2):
        answer = api.chat.completions.create(
            model=model, messages=messages, max_tokens=tokens, store=True, user=user
        )
        assert answer.stored is True  # type: ignore[attr-defined]
        text = answer.choices[0].message.content or ""
        found.append(
            (vader_compound(prompt, Completion(answer.id, prompt.id, 0, text, "given", model)), answer.id)
        )
    (low, worse), (high, better) = sorted(found)
    tie = high - low < ALIKE
    api.post("/preferences", body={"chosen": better, "rejected": worse, "tie": tie}, cast_to=object)
    for score, id in found:
        api.post("/feedback", body={"id": id, "vote": "up" if score > 0 else "down"}, cast_to=object)


def turn(folder: Path, recipe: Path, number: int, prompts: Sequence[Prompt], tokens: int) -> dict[str, Any]:
    """One round: what was collected, what entered, and what it came to."""
    started = time.monotonic()
    policy = folder / f"run/round-{number - 1}/dpo" if number > 1 else None
    with served(folder, policy) as api, ThreadPoolExecutor(AT_ONCE) as pool:
        model = MODEL if policy is None else "now"
        asked = [
            pool.submit(visit, api, model, prompt, user=f"{number}-{at}", tokens=tokens)
            for at, prompt in enumerate(prompts)
        ]
        for each in asked:
            each.result()
    print(rlaif("collect", "export", "chats.sqlite", "--out", "collected", folder=folder))
    collected = time.monotonic() - started
    rlaif("run", recipe, "--rounds", number, "--out", "run", folder=folder)
    taken = json.loads((folder / f"run/feedback/round-{number}.json").read_text("utf-8"))["counts"]
    (found,) = json.loads((folder / "run/rounds.json").read_text("utf-8"))["rounds"][number - 1 :]
    return {
        "round": number,
        "entered": taken,
        "gains": found["gains"],
        "answers": found["answers"],
        "seconds_collecting": collected,
        "seconds_training": time.monotonic() - started - collected,
    }


def everyday() -> list[Prompt]:
    """The built-in messages that no evaluation uses."""
    parts: tuple[Any, ...] = ("label", "rl", "sft")
    settings = [SampleConfig(prompts="builtin:everyday", split=part) for part in parts]
    return [
        prompt
        for part, each in zip(parts, settings, strict=True)
        for prompt in load_prompts(each, own_split=part, seed=0, progress=NoProgress())
    ]


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    return os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def main() -> None:
    """Turn it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/flywheel.yaml"))
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    known = everyday()
    if options.rounds * options.prompts > len(known):
        parser.error(f"there are {len(known)} messages for {options.rounds} rounds of {options.prompts}")
    for number in range(1, options.rounds + 1):
        asked = known[(number - 1) * options.prompts : number * options.prompts]
        said = turn(options.out, options.recipe.resolve(), number, asked, options.tokens)
        print(json.dumps(said, indent=1), flush=True)
    print(rlaif("collect", "stats", "chats.sqlite", folder=options.out))
    print((options.out / "run/rounds.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
