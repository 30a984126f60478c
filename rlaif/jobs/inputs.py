"""What a stage reads: prompts from a source, completions from an earlier stage or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlaif.config.labelling import LabelConfig, PromptSettings, Split
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.io.readers import Read, read_prompts, read_responses
from rlaif.io.splits import draw_split, split_of
from rlaif.progress import Progress
from rlaif.results.rows import completion_from_row
from rlaif.types import Completion, Prompt

__all__ = [
    "OWN_SPLIT",
    "Completions",
    "load_completions",
    "load_prompts",
    "load_responses",
    "passed_over",
    "prompts_digest",
    "read_source",
    "with_others",
]

Item = TypeVar("Item")

OWN_SPLIT: Mapping[str, Split] = {"sample": "label", "revise": "sft", "evaluate": "eval"}
"""Parts of the built-in prompts by kind of stage; all others train on `rl`."""

PROBLEMS_TOLD = 20
"""Skipped rows that are listed one by one; the rest are in the count."""


class Completions(NamedTuple):
    """Completions to judge.

    Attributes:
        given: Pairs that a file set against each other, by prompt id, as indices of that prompt's
            completions.
        bad_rows: Rows of the file that were skipped; of a shard, its share of them.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    given: Mapping[str, Sequence[tuple[int, int]]]
    bad_rows: int = 0

    def digest(self) -> str:
        """Digest of all that is to be judged."""
        texts = [[each.id, each.text, each.model] for each in self.completions]
        pairs = {id: [list(pair) for pair in met] for id, met in self.given.items()}
        return digest([prompts_digest(self.prompts), texts, pairs])

    def part(self, shard: str | None, *, where: str) -> Completions:
        """Those of every N-th prompt from the I-th on, for the shard `I/N`.

        Raises:
            DataError: There is no such prompt.
        """
        prompts = part_of(self.prompts, shard, where=where)
        mine = {prompt.id for prompt in prompts}
        return self._replace(
            prompts=prompts,
            completions=tuple(each for each in self.completions if each.prompt_id in mine),
            given={id: pairs for id, pairs in self.given.items() if id in mine},
            bad_rows=len(_share(range(self.bad_rows), shard)),
        )


def load_prompts(
    settings: PromptSettings,
    *,
    own_split: Split,
    own_limit: int | None = None,
    seed: int,
    progress: Progress,
    left_out: Callable[[str, int], None] | None = None,
    shard: str | None = None,
) -> tuple[Prompt, ...]:
    """The prompts that `settings` name: read, restricted to a split, drawn by seed.

    Args:
        own_split: The part of the built-in prompts that belongs to this kind of stage.
        own_limit: How many built-in prompts to draw when no limit is set.
        left_out: Told the source and how many of its rows could not be read, where they may be skipped.
        shard: Take every N-th only, from the I-th on, for `I/N`.

    Raises:
        DataError: They cannot be read, or the split holds none.
    """
    read = read_source(settings)
    _tell(read, settings.prompts, progress)
    if settings.skip_bad_rows and left_out is not None:
        left_out(settings.prompts, len(_share(read.problems, shard)))
    chosen = _in_split(read.items, settings, own_split)
    limit = settings.limit or (own_limit if _is_builtin(settings) else None)
    drawn = _drawn(chosen, limit, settings.skip, seed, where=settings.prompts)
    return part_of(drawn, shard, where=settings.prompts)


def passed_over(settings: PromptSettings, *, own_split: Split, seed: int) -> Sequence[Prompt]:
    """The prompts that `settings.skip` leaves to earlier runs, as `load_prompts` draws them.

    Raises:
        DataError: They cannot be read, or the split holds none.
    """
    if not settings.skip:
        return ()
    read = read_source(settings)
    return draw_split(_in_split(read.items, settings, own_split), settings.skip, seed)


def read_source(settings: PromptSettings, source: str | None = None) -> Read[Prompt]:
    """All prompts of the source that `settings` name, or of another one that is read as they say."""
    return read_prompts(
        source or settings.prompts,
        prompt_column=settings.prompt_column,
        context_column=settings.context_column,
        skip_bad_rows=settings.skip_bad_rows,
    )


def _is_builtin(settings: PromptSettings) -> bool:
    return settings.prompts.partition(":")[0] == "builtin"


def _in_split(prompts: Sequence[Prompt], settings: PromptSettings, own_split: Split) -> list[Prompt]:
    """Those of the split that `settings` name.

    Raises:
        DataError: There are none.
    """
    split = settings.split or (own_split if _is_builtin(settings) else "all")
    chosen = [prompt for prompt in prompts if split in ("all", split_of(prompt.fingerprint()))]
    if not chosen:
        raise DataError(
            f"none of the {len(prompts)} prompts falls into the split `{split}`",
            where=settings.prompts,
            remedy="give more prompts, or take them all with split: all",
        )
    return chosen


def _drawn(
    prompts: Sequence[Prompt], limit: int | None, skip: int, seed: int, *, where: str
) -> Sequence[Prompt]:
    """Up to `limit` prompts, all where there is none, after the first `skip` of the draw.

    Raises:
        DataError: Some are passed over, and too few are left.
    """
    if not skip:
        return draw_split(prompts, limit, seed) if limit else prompts
    left = draw_split(prompts, None, seed)[skip:]
    if len(left) < (wanted := limit or 1):
        missing = wanted - len(left)
        raise DataError(
            f"of {len(prompts)} prompts {skip} are used already and {wanted} more are wanted: {missing} are "
            "missing",
            where=where,
            remedy="give more prompts, or take fewer each time (limit)",
        )
    return left[:limit]


def with_others(
    drawn: Sequence[Prompt], files: Sequence[str], settings: PromptSettings, progress: Progress
) -> tuple[Prompt, ...]:
    """`drawn`, and the prompts of further files that ask something else; one whose id is taken gets another
    one."""
    found = {prompt.fingerprint(): prompt for prompt in drawn}
    ids = {prompt.id for prompt in drawn}
    for file in files:
        read = read_source(settings, file)
        _tell(read, file, progress)
        for prompt in read.items:
            if (key := prompt.fingerprint()) in found:
                continue
            id = prompt.id if prompt.id not in ids else f"{prompt.id}-{key[:8]}"
            found[key] = replace(prompt, id=id)
            ids.add(id)
    return tuple(found.values()) if files else tuple(drawn)


def part_of(items: Sequence[Item], shard: str | None, *, where: str) -> tuple[Item, ...]:
    """Every N-th of `items` from the I-th on, for the shard `I/N`; all where there is none.

    Raises:
        DataError: There are fewer items than shards, and this one has none.
    """
    part = tuple(_share(items, shard))
    if shard is not None and not part:
        raise DataError(
            f"shard {shard} of {len(items)} prompts is empty", where=where, remedy="use fewer shards"
        )
    return part


def _share(items: Sequence[Item], shard: str | None) -> Sequence[Item]:
    if shard is None:
        return items
    number, count = map(int, shard.split("/"))
    return items[number - 1 :: count]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Digest of what is asked, and of what a judge reads beside it, in order."""

    def read(prompt: Prompt) -> list[Any]:
        beside = [[each.meaning() for each in prompt.rubric], prompt.reference]
        own = [prompt.id, prompt.fingerprint(), list(prompt.tags)]
        return [*own, beside] if any(beside) else own

    return digest([read(prompt) for prompt in prompts])


def load_completions(folder: Path) -> Completions:
    """The completions that a sample stage left in `folder`."""
    prompts: dict[str, Prompt] = {}
    completions: list[Completion] = []
    with (folder / "completions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            prompt, completion = completion_from_row(json.loads(line))
            prompts.setdefault(prompt.id, prompt)
            completions.append(completion)
    return Completions(prompts=tuple(prompts.values()), completions=tuple(completions), given={})


def load_responses(config: LabelConfig, progress: Progress) -> Completions:
    """The completions or pairs of the file that `config.responses` names."""
    assert config.responses is not None
    read = read_responses(
        config.responses,
        prompt_column=config.prompt_column,
        context_column=config.context_column,
        skip_bad_rows=config.skip_bad_rows,
    )
    _tell(read, config.responses, progress)
    drawn = read.items[: config.limit] if config.limit else read.items
    return Completions(
        prompts=tuple(item.prompt for item in drawn),
        completions=tuple(each for item in drawn for each in item.completions),
        given={item.prompt.id: item.pairs for item in drawn if item.pairs},
        bad_rows=len(read.problems),
    ).part(config.shard, where=config.responses)


def _tell(read: Read[Any], source: str, progress: Progress) -> None:
    """Pass on what a reader noticed: nothing is left out in silence."""
    for note in read.notes:
        progress.note(f"{source}: {note}")
    if read.problems:
        progress.note(
            f"{source}: {len(read.problems)} of {read.rows} rows could not be read and were skipped:"
        )
    for problem in read.problems[:PROBLEMS_TOLD]:
        progress.note(f"  {problem}")
