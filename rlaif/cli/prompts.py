"""`rlaif prompts`."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.echo import tell
from rlaif.cli.generate import generate
from rlaif.cli.options import constitution_option, examples
from rlaif.constitution.load import load_constitution
from rlaif.errors import ConfigError
from rlaif.judging.table import PROTOCOLS, open_protocol
from rlaif.prompts import LabelPrompt, PromptLibrary
from rlaif.suggest import did_you_mean
from rlaif.types import Comparison, Completion, Constitution, Criterion, Message, Principle, Prompt

__all__ = ["prompts"]

LISTED = 50
"""Principles that an error names."""
KINDS = (*PROTOCOLS, "critique", "revise", "policy")


@click.group(
    epilog=examples("rlaif prompts render --kind pairwise", "rlaif prompts generate --constitution my.yaml")
)
def prompts() -> None:
    """Print exactly what a judge will read; write prompts that test a constitution."""


prompts.add_command(generate)


@prompts.command(
    epilog=examples(
        "rlaif prompts render --kind pairwise --principle no-harm",
        "rlaif prompts render --kind pointwise --constitution constitutions/warmth.yaml --a 'I am so happy "
        "for you!'",
        "rlaif prompts render --prompts-dir my_prompts --model none",
    )
)
@constitution_option
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=None,
    help="Which prompt. [default: the constitution's protocol]",
)
@click.option(
    "--principle",
    default=None,
    metavar="ID",
    help="Principle to render. [default: the first that has the text needed]",
)
@click.option(
    "--prompt", "text", default="What is the capital of France?", show_default=True, help="The user's turn."
)
@click.option("--a", default="Paris.", show_default=True, help="The (first) completion.")
@click.option("--b", default="I would rather not say.", show_default=True, help="The second completion.")
@click.option(
    "--critique", default="It could say more.", show_default=True, help="The critique that `revise` quotes."
)
@click.option(
    "--criterion",
    default="Names the city.",
    show_default=True,
    help="The criterion of the prompt's rubric that `rubric` asks about.",
)
@click.option(
    "--reference",
    default="Paris, on the Seine.",
    show_default=True,
    help="The answer that protocols with a reference show.",
)
@click.option(
    "--prompts-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of templates that replace ours.",
)
@click.option(
    "--model",
    default="smollm2-135m",
    show_default=True,
    metavar="MODEL",
    help="Whose chat template wraps the messages; `none` prints the messages alone.",
)
def render(
    *,
    constitution: str,
    kind: str | None,
    principle: str | None,
    text: str,
    a: str,
    b: str,
    critique: str,
    criterion: str,
    reference: str,
    prompts_dir: Path | None,
    model: str,
) -> None:
    """Print a prompt as the model will read it, its chat template included; then the labels and the digest of
    the template."""
    loaded = load_constitution(constitution)
    chosen = kind or loaded.protocol
    library = PromptLibrary(loaded.language, prompts_dir)
    rubric = (Criterion(criterion),)
    prompt = Prompt(id="prompt", messages=(Message("user", text),), rubric=rubric, reference=reference)
    first, second = (
        Completion(
            id=f"prompt/{index}", prompt_id="prompt", index=index, text=each, finish="given", model="given"
        )
        for index, each in enumerate((a, b))
    )
    if chosen in PROTOCOLS:
        protocol = open_protocol(chosen, library=library, constitution=loaded)
        (rule,) = protocol.criteria(prompt) or [_principle(loaded, chosen, principle, source=constitution)]
        asked = protocol.questions(Comparison(prompt, first, second), rule)[0]
        question, name = LabelPrompt(asked.messages, asked.labels), protocol.template
    else:
        rule = _principle(loaded, chosen, principle, source=constitution)
        name, texts = chosen, _texts(chosen, library, prompt, rule, completion=a, critique=critique)
        question = LabelPrompt(texts, ())
    _print(question, model)
    tell(f"template {name}.j2, digest {library.digest(name)}", err=True)


def _texts(
    kind: str, library: PromptLibrary, prompt: Prompt, rule: Principle, *, completion: str, critique: str
) -> tuple[Message, ...]:
    """What a policy reads when it answers, criticises or revises."""
    match kind:
        case "critique":
            return library.critique(prompt, completion, rule)
        case "revise":
            return library.revise(prompt, completion, critique, rule)
        case _:
            return library.policy(prompt)


def _principle(constitution: Constitution, kind: str, id: str | None, *, source: str) -> Principle:
    """The principle called `id`, or the first that has the half which `kind` needs."""
    halves: dict[str, str] = {name: each.half for name, each in PROTOCOLS.items() if each.half}
    half = {**halves, "critique": "critique", "revise": "revision"}.get(kind, "id")
    usable = [
        each for each in constitution.principles if getattr(each, half) is not None and id in (None, each.id)
    ]
    if usable:
        return usable[0]
    known = [each.id for each in constitution.principles]
    if id is not None and id not in known:
        what, guess = f"there is no principle `{id}`", did_you_mean(id, known)
    else:
        what, guess = (
            f"{f'the principle `{id}` has' if id else 'no principle has'} {'no' if id else 'a'} `{half}`",
            "",
        )
    raise ConfigError(what, where=source, remedy=f"{guess}the principles are {', '.join(known[:LISTED])}")


def _print(question: LabelPrompt, model: str) -> None:
    """The messages in the model's chat template, or each under its role; then the labels."""
    if model == "none":
        for message in question.messages:
            tell(f"[{message.role}]\n{message.content}\n")
    else:
        from rlaif.models.open import open_token_count

        counter = open_token_count(model)
        tell(counter.render(question.messages))
        tell(f"{counter.count(question.messages)} tokens", err=True)
    if question.labels:
        tell(f"labels: {' | '.join(question.labels)}", err=True)
