"""Try a served model out as a judge: what it is, how its labels are read, and whether all answers come.

    python scripts/check_server.py smollm2 --base-url http://127.0.0.1:8137/v1

Asks twelve short questions and one completion, in each of the ways that labels can be read, and prints what
came. Exits 1 when an answer is missing or failed; an answer in words that names no label is the model's own
affair. `docs/how-to/bring-your-own-judge.md` tells how to start a server for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from rlaif.engines.base import GenerationRequest, LabelRequest, Sampling
from rlaif.engines.openai import ApiSettings, OpenAIEngine, open_openai
from rlaif.errors import RlaifError
from rlaif.types import Message

TEXTS = (
    "I love this wonderful day!",
    "This is awful, and I hate it.",
    "The box is grey.",
    "Thank you so much, my friend!",
    "Leave me alone.",
    "What a kind thing to say.",
)
LABELS = ("Positive", "Negative")
WAYS = {
    "chat": ApiSettings(),
    "completions": ApiSettings(api="completions"),
    "chat, votes": ApiSettings(reads="votes", votes=3),
    "chat, one parsed answer": ApiSettings(reads="votes", votes=1),
}


def questions() -> list[LabelRequest]:
    """Each text, asked in an open turn and in a turn that the assistant has begun."""
    found = []
    for text in TEXTS:
        asked = Message(
            "user",
            f"Text: {text}\nIs its tone positive or negative? Answer with one word: {LABELS[0]} or "
            f"{LABELS[1]}.",
        )
        found += [
            LabelRequest((asked,), LABELS),
            LabelRequest((asked, Message("assistant", "Answer:")), LABELS),
        ]
    return found


def check(engine: OpenAIEngine) -> bool:
    """Ask everything, print it, and tell whether every answer came."""
    began = time.perf_counter()
    asked = questions()
    readings = {index: reading for batch in engine.label_logprobs(asked) for index, reading in batch.items()}
    for index, reading in sorted(readings.items()):
        told = reading.reason or ", ".join(
            f"{label} {value:.3f}" for label, value in zip(LABELS, reading.logprobs, strict=True)
        )
        print(f"    {TEXTS[index // 2]:<32} {'begun' if index % 2 else 'open':<6} {told}")
    request = GenerationRequest(
        (Message("user", "Say hello to Anna."),), Sampling(max_new_tokens=24, temperature=0.0), seed=1
    )
    (written,) = [generation for batch in engine.generate([request]) for generation in batch.values()]
    print(f"    {written.text!r} ({written.finish}, {written.tokens} tokens)")
    print(f"    {time.perf_counter() - began:.1f} s, {engine.usage.as_dict()}")
    reasons = [reading.reason for reading in readings.values()]
    print(f"    {reasons.count('')} of {len(asked)} readings valid")
    return (
        len(readings) == len(asked)
        and set(reasons) <= {"", "no_label_in_answer"}
        and written.finish != "refused"
    )


def main() -> int:
    """Parse the command line and check each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the name that the server serves the model under")
    parser.add_argument("--base-url", action="append", default=[], help="repeat it for several servers")
    parser.add_argument("--concurrency", type=int, default=4)
    arguments = parser.parse_args()
    failed = []
    for name, settings in WAYS.items():
        try:
            engine = open_openai(
                f"openai:{arguments.model}",
                base_urls=arguments.base_url,
                settings=replace(settings, concurrency=arguments.concurrency),
                log=print,
            )
            print(f"{name}: {engine.card}")
            fine = check(engine)
        except RlaifError as error:
            print(f"{name}: {error}")
            fine = False
        if not fine:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all ways work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
