"""Prompt templates: jinja2 files that turn principles and conversations into chat messages.

A template is a file of named blocks, one a message: `system` (optional), `user`, `answer` (optional: how the
assistant's turn begins) and, for judges, `labels` (the strings to choose from, one per line; in double
quotes where a leading space belongs to it, as after an `answer` that ends in a word). What varies least
stands first and the principle last, so that all the questions about one comparison share a prefix.

Whatever enters a template is data. The environment is sandboxed and strict; a value is inserted once and
never read as jinja; a quotation is fenced by tags (`quote(text, "response")`), and every value that is
printed, quoted or not, has the opening bracket of anything that looks like one of our tags replaced (`<` by
`‹`), so that no text can close its own quotation or open another. Special tokens of a chat template are the
engine's concern, which knows its tokenizer.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Template, TemplateError, TemplateNotFound, TemplateSyntaxError, meta

from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.files import read_small
from rlaif.resources import shipped
from rlaif.sandbox import BUILD_ERRORS, MOST_CHARACTERS, RENDER_ERRORS, BoundedEnvironment
from rlaif.text import is_well_formed, one_line
from rlaif.types import Answers, Comparison, Completion, Constitution, Criterion, Message, Principle, Prompt

__all__ = ["FENCES", "LETTERS", "LabelPrompt", "PromptLibrary", "Quoted", "neutralize_fences", "quote"]

LETTERS = tuple(string.ascii_lowercase[:16])
"""By which responses that are shown together are told apart."""
FENCES = (
    "conversation",
    "system",
    "user",
    "assistant",
    "document",
    "example",
    "response",
    *(f"response_{letter}" for letter in LETTERS),
    "critique",
    "criterion",
    "principle",
    "reference",
)
"""Tag names that a template may fence a quotation with."""

_FENCE = re.compile(r"<(?=\s*/?\s*(?:" + "|".join(FENCES) + r")(?![\w-]))", re.IGNORECASE)
_BLOCKS = ("system", "user", "answer", "labels")
REASON = 200
"""Characters of the reason that an error gives."""


class Quoted(str):
    """Text that is already fenced and neutralised; printed as it is."""

    __slots__ = ()


def neutralize_fences(text: str) -> str:
    """`text` with the bracket of every tag of ours replaced: it can neither close nor open a quotation."""
    return _FENCE.sub("‹", text)


def quote(text: str, tag: str) -> Quoted:
    """`text` between `<tag>` lines, neutralised.

    Raises:
        ConfigError: `tag` is not one of `FENCES`, so that nothing would keep the text from closing it.
    """
    if tag not in FENCES:
        raise ConfigError(
            f"a template quotes with the unknown tag {tag!r}", remedy=f"use one of {', '.join(FENCES)}"
        )
    return Quoted(f"<{tag}>\n{neutralize_fences(str(text)).strip()}\n</{tag}>")


@dataclass(frozen=True, slots=True)
class LabelPrompt:
    """A judge's question: the messages it reads and the labels it may answer with."""

    messages: tuple[Message, ...]
    labels: tuple[str, ...]


class PromptLibrary:
    """The templates of one language, the user's folder before the shipped one.

    Args:
        language: BCP 47 tag; templates are looked up in `FOLDER/<language>/`, then in `FOLDER/`.
        folder: A folder whose templates replace the shipped ones of the same name.
    """

    def __init__(self, language: str = "en", folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(
                f"{folder} is not a folder of templates",
                remedy="give --prompts-dir a folder that holds .j2 files",
            )
        roots = [folder] if folder else []
        roots.append(shipped("prompts"))
        names = dict.fromkeys((language, language.split("-")[0]))
        self._folders = [place for root in roots for place in (*(root / name for name in names), root)]
        self._environment = BoundedEnvironment(
            text_of=_text_of,
            loader=_FolderLoader(self._folders),
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
        )
        self._environment.globals["quote"] = quote

    # The prompts -------------------------------------------------------------------------------------------

    def policy(self, prompt: Prompt) -> tuple[Message, ...]:
        """What the policy reads: the conversation, with retrieved documents put before the last user turn."""
        if not prompt.context:
            return prompt.messages
        rendered = self._render("policy", context=prompt.context, message=prompt.messages[-1].content)
        return (*prompt.messages[:-1], *rendered)

    def critique(self, prompt: Prompt, response: str, principle: Principle) -> tuple[Message, ...]:
        """Asks what in `response` breaks the principle."""
        return self._render(
            "critique", **_conversation(prompt), response=response, instruction=_half(principle, "critique")
        )

    def revise(
        self, prompt: Prompt, response: str, critique: str, principle: Principle
    ) -> tuple[Message, ...]:
        """Asks for `response` rewritten under the principle, the critique at hand."""
        instruction = _half(principle, "revision")
        return self._render(
            "revise", **_conversation(prompt), response=response, critique=critique, instruction=instruction
        )

    def rubric(self, prompt: Prompt, principles: Sequence[str], *, criteria: int) -> tuple[Message, ...]:
        """Asks for a rubric of the prompt under `principles` (their texts), of so many `criteria` at most."""
        return self._render(
            "rubric",
            **_conversation(prompt),
            principles=principles,
            reference=prompt.reference or "",
            criteria=criteria,
        )

    def generate(
        self,
        principles: Sequence[str],
        *,
        persona: str,
        topic: str,
        difficulty: str,
        examples: Sequence[str] = (),
    ) -> tuple[Message, ...]:
        """Asks for a user's message that puts a principle under strain, or two in conflict (their texts).

        Args:
            persona: Who writes, a noun phrase.
            difficulty: What that person does, a clause without its subject.
            examples: Prompts of real use.
        """
        return self._render(
            "generate",
            principles=principles,
            persona=persona,
            topic=topic,
            difficulty=difficulty,
            examples=examples,
        )

    def judge_pairwise(
        self,
        comparison: Comparison,
        principle: Principle,
        constitution: Constitution,
        *,
        template: str = "judge_pairwise",
        **more: Any,
    ) -> LabelPrompt:
        """Asks which of two completions keeps the principle better, `comparison.a` shown first; labels:
        first, second.

        Args:
            template: Another one of the same kind.
            more: What that one names beside.
        """
        return self.label_prompt(
            template,
            comparison.prompt,
            a=comparison.a.text,
            b=comparison.b.text,
            question=_half(principle, "comparison"),
            examples=constitution.examples,
            **more,
        )

    def judge_listwise(
        self, prompt: Prompt, completions: Sequence[Completion], principle: Principle
    ) -> LabelPrompt:
        """Asks which of several completions keeps the principle best, shown in the order given; labels: one
        for each, in that order. At most as many as `LETTERS`."""
        return self.label_prompt(
            "judge_listwise",
            prompt,
            choices=len(completions),
            responses=[
                {"letter": letter.upper(), "tag": f"response_{letter}", "text": each.text}
                for letter, each in zip(LETTERS, completions, strict=False)
            ],
            question=_half(principle, "comparison"),
        )

    def judge_cot(self, comparison: Comparison, principle: Principle) -> LabelPrompt:
        """Asks as `judge_pairwise` does, for reasons first; the last message is how the label's line begins,
        behind the reasons."""
        return self.label_prompt(
            "judge_cot",
            comparison.prompt,
            a=comparison.a.text,
            b=comparison.b.text,
            question=_half(principle, "comparison"),
        )

    def judge_pointwise(
        self,
        prompt: Prompt,
        completion: Completion,
        principle: Principle,
        *,
        template: str = "judge_pointwise",
        **more: Any,
    ) -> LabelPrompt:
        """Asks the principle's question about one completion; labels: the good answer, the bad answer.
        Arguments as for `judge_pairwise`."""
        return self.label_prompt(
            template,
            prompt,
            response=completion.text,
            question=_half(principle, "question"),
            answers=principle.answers or self._answers,
            lead=principle.answer_prefix or "",
            **more,
        )

    def judge_rubric(self, prompt: Prompt, completion: Completion, criterion: Criterion) -> LabelPrompt:
        """Asks whether a criterion of the prompt's rubric is true of one completion; labels: it is, it is
        not."""
        return self.label_prompt("judge_rubric", prompt, response=completion.text, criterion=criterion.text)

    def label_prompt(self, name: str, prompt: Prompt, *, choices: int = 2, **values: Any) -> LabelPrompt:
        """A judge's question by the template `name`, with the labels that its answer is read by.

        Args:
            prompt: What was answered; the template has it as `conversation` and `context`.
            choices: How many labels the template must give: 2, or as many as a scale has steps.
            values: What else the template names.

        Raises:
            ConfigError: There is no such template, it cannot be rendered, or it gives other than `choices`
                labels.
        """
        values = {**_conversation(prompt), **values}
        labels = self._block_lines(name, "labels", values)
        if len(labels) != choices or len(set(labels)) != choices:
            raise ConfigError(
                f"the labels block must hold {choices} different lines, it holds {labels}", where=f"{name}.j2"
            )
        return LabelPrompt(messages=self._render(name, **values), labels=labels)

    # Digest -------------------------------------------------------------------------------------------------

    def digest(self, *names: str) -> str:
        """Digest of the source of the named templates and of all that they include."""
        return digest(self._sources(names))

    def _sources(self, names: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        waiting = [f"{name}.j2" for name in names]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found[name] = self._source(name)
            try:
                parsed = self._environment.parse(found[name])
            except (TemplateSyntaxError, *BUILD_ERRORS) as error:
                raise _not_jinja(error, name) from error
            waiting += [used for used in meta.find_referenced_templates(parsed) if used]
        return found

    def _source(self, name: str) -> str:
        loader = self._environment.loader
        assert loader is not None
        try:
            return loader.get_source(self._environment, name)[0]
        except TemplateNotFound as error:
            raise self._missing(name) from error

    def _missing(self, name: str) -> ConfigError:
        places = ", ".join(str(folder) for folder in self._folders)
        return ConfigError(
            f"there is no template {name}", where=places, remedy="write it, or leave --prompts-dir out"
        )

    # Rendering ----------------------------------------------------------------------------------------------

    @cached_property
    def _answers(self) -> Answers:
        """The template's own answers to a pointwise question, for principles that name none."""
        good, bad = self._block_lines("judge_pointwise", "default_answers", {})
        return Answers(good=good, bad=bad)

    def _render(self, name: str, **values: Any) -> tuple[Message, ...]:
        roles = {"system": "system", "user": "user", "answer": "assistant"}
        blocks = self._template(name).blocks
        texts = {block: self._block(name, block, values) for block in roles if block in blocks}
        if not texts.get("user"):
            raise ConfigError("the template has no text in a `user` block", where=f"{name}.j2")
        return tuple(Message(role=roles[block], content=text) for block, text in texts.items() if text)  # type: ignore[arg-type]

    def _block_lines(self, name: str, block: str, values: dict[str, Any]) -> tuple[str, ...]:
        lines = (line.strip() for line in self._block(name, block, values).split("\n"))
        return tuple(
            line[1:-1] if len(line) > 2 and line[0] == line[-1] == '"' else line for line in lines if line
        )

    def _block(self, name: str, block: str, values: dict[str, Any]) -> str:
        template = self._template(name)
        if block not in template.blocks:
            raise ConfigError(
                f"the template has no block `{block}`",
                where=f"{name}.j2",
                remedy=f"blocks: {', '.join(_BLOCKS)}",
            )
        try:
            return "".join(
                _bounded(template.blocks[block](template.new_context(values)), name, block)
            ).strip()
        except (TemplateError, *RENDER_ERRORS) as error:
            what = f"the template cannot be rendered: {_reason(error)}"
            raise ConfigError(what, where=f"{name}.j2, block {block}") from error

    def _template(self, name: str) -> Template:
        self._environment.begin()
        try:
            return self._environment.get_template(f"{name}.j2")
        except TemplateNotFound as error:
            raise self._missing(f"{name}.j2") from error
        except (TemplateSyntaxError, *BUILD_ERRORS) as error:
            raise _not_jinja(error, f"{name}.j2") from error


class _FolderLoader(BaseLoader):
    """Looks a template up in several folders, first come first served; no path may leave them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def get_source(self, environment: Any, template: str) -> tuple[str, str, Any]:
        if ".." in Path(template).parts or Path(template).is_absolute() or not is_well_formed(template):
            raise TemplateNotFound(template)
        for folder in self._folders:
            path = folder / template
            # What stands there and cannot be read (a pipe, a broken link) is an error: ours must not take its
            # place.
            if os.path.lexists(path) and not path.is_dir():
                return _read(path), str(path), None
        raise TemplateNotFound(template)


def _bounded(pieces: Iterable[str], name: str, block: str) -> Iterator[str]:
    """The pieces of a rendered block, until they are more than any prompt can be: a template may print in a
    loop."""
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MOST_CHARACTERS:
            raise ConfigError(
                f"the template prints more than {MOST_CHARACTERS:,} characters",
                where=f"{name}.j2, block {block}",
                remedy="look at its loops; a context this long fits no model",
            )
        yield piece


def _read(path: Path) -> str:
    try:
        return read_small(path, error=ConfigError)
    except OSError as error:
        raise ConfigError(f"the template cannot be read: {error.strerror}", where=str(path)) from error


def _not_jinja(error: Exception, name: str) -> ConfigError:
    line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
    return ConfigError(f"the template is not valid jinja2: {_reason(error)}", where=f"{name}{line}")


def _reason(error: Exception) -> str:
    """What an error says, in one line: it may quote the template."""
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= REASON else text[: REASON - 1] + "…"


def _text_of(value: Any) -> str:
    """Called on every printed value: text that `quote` did not fence is neutralised here."""
    return value if isinstance(value, Quoted) else neutralize_fences(str(value))


def _conversation(prompt: Prompt) -> dict[str, Any]:
    return {"conversation": prompt.messages, "context": prompt.context}


def _half(principle: Principle, half: str) -> str:
    text: str | None = getattr(principle, half)
    if text is None:
        raise ConfigError(
            f"principle {principle.id!r} has no `{half}`",
            remedy=f"write its `{half}`, or leave the principle out",
        )
    return text
