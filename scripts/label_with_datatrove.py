"""Label with datatrove: the `label` stage of a recipe in many tasks, on this machine, on Slurm or on Ray.

    python scripts/label_with_datatrove.py label.yaml --out answers --tasks 64 --on slurm --set partition=gpu
    python scripts/label_with_datatrove.py label.yaml --out answers --journal runs/rlaif-journal.sqlite
    rlaif run label.yaml --out runs/label

The first line asks the judge, the second takes the answers of all tasks into a journal, and the third finds
them there and writes the labels that one process would have written; docs/how-to/scale-out.md has the rest.

datatrove runs the tasks and the servers, and goes on where a task stopped. A task is a shard, a document a
block of its comparisons, and what a rollout returns are the rows of a journal. Our own engine asks, since
datatrove's `generate` passes on the text of an answer without its log-probabilities.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dill
import yaml
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from rlaif.config import LabelConfig, Recipe, load_recipe
from rlaif.engines.base import Engine
from rlaif.engines.journaled import JournaledEngine, NullMemo
from rlaif.errors import ConfigError, RlaifError
from rlaif.jobs.context import RunContext
from rlaif.jobs.label import LabelJob
from rlaif.progress import NoProgress
from rlaif.runs.journal import Journal
from rlaif.text import count_of

BLOCK = 2048
"""Comparisons in a document, of which a task does one at a time: the engine keeps its servers busy by itself,
and its account of what a server takes is not for two threads."""
BLOCKS_PER_FILE = 16
EXECUTORS = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}


class Rows(NullMemo):
    """Keeps answers as the rows that a journal would hold, by kind."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, Any]] = {}

    def put_many(self, kind: str, values: Mapping[str, Any]) -> int:
        """See `Memo`."""
        self.kinds.setdefault(kind, {}).update(values)
        return len(values)


class Labelling:
    """The label stage of a recipe, as the steps of a datatrove pipeline."""

    def __init__(self, recipe: Recipe) -> None:
        stages = [stage for stage in recipe.stages if isinstance(stage, LabelConfig) and stage.responses]
        judge = stages[0].judge or recipe.model if len(stages) == 1 else ""
        if not judge.startswith("openai:"):
            raise ConfigError(
                "the recipe must have one label stage, of responses, by a served judge",
                remedy="write stages: [{stage: label, responses: FILE, judge: 'openai:MODEL'}]",
            )
        self.recipe, self.stage, self.model = recipe, stages[0], judge.removeprefix("openai:")
        self.engine: Engine | None = None

    def blocks(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The comparisons of a task, in blocks."""
        self.job, self.engine = LabelJob(self.stage, self._context(self.recipe)), None
        whole = self.job.source
        if rank >= len(whole.prompts):
            return  # there are more tasks than prompts
        self.job.source = whole.part(f"{rank + 1}/{world_size}", where=self.stage.responses or "")
        self.comparisons = self.job.pairing.comparisons
        for first in range(0, len(self.comparisons), BLOCK):
            text = f"comparisons from {first} on, of {len(self.comparisons)}"  # none is no document
            yield Document(text=text, id=f"{rank}-{first}", metadata={"first": first})

    async def rollout(self, document: Document, generate: Any) -> dict[str, Any]:
        """What the judge answers about a block."""
        if self.engine is None:
            self.engine = await self._open(generate.keywords["server"])
        return await asyncio.to_thread(self._ask, self.engine, document.metadata["first"])

    async def _open(self, server: Any) -> Engine:
        """The engine, connected to the recipe's servers; or to the one that datatrove starts for the task."""
        recipe = self.recipe
        if not recipe.server.base_urls:
            greeting = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            await server.make_request({"model": self.model, **greeting})  # waits until it is up
            urls = {"base_urls": (f"{server.get_base_url()}/v1",)}
            recipe = recipe.model_copy(update={"server": recipe.server.model_copy(update=urls)})
        engines = self._context(recipe).engines
        return (await asyncio.to_thread(engines.get, self.job.judge)).engine

    def _ask(self, engine: Engine, first: int) -> dict[str, Any]:
        rows = Rows()
        judge = self.job.open_judge(JournaledEngine(engine, rows))
        deque(judge.judge(self.comparisons[first : first + BLOCK]), maxlen=0)
        return rows.kinds

    @staticmethod
    def _context(recipe: Recipe) -> RunContext:
        return RunContext(recipe, memo=NullMemo(), progress=NoProgress())


def ask(labelling: Labelling, out: Path, options: argparse.Namespace) -> None:
    """Have datatrove ask everything; on Slurm, have it submitted."""
    urls = labelling.recipe.server.base_urls
    config = InferenceConfig(
        server_type="endpoint" if urls else "vllm",
        model_name_or_path=labelling.model,
        endpoint_url=urls[0].removesuffix("/v1") if urls else None,
        api_key="none",  # it wants one, and never uses it here; the judge's own is read as ever
        max_concurrent_documents=1,
        **settings(options.inference),
    )
    runner = InferenceRunner(
        labelling.rollout,
        config,
        JsonlWriter(f"{out}/rows", output_filename="${rank}_${chunk_index}.jsonl", compression=None),
        checkpoints_local_dir=f"{out}/checkpoints",
        records_per_chunk=BLOCKS_PER_FILE,
    )
    place = {"tasks": options.tasks, "logging_dir": f"{out}/logs", **settings(options.set)}
    if options.on == "slurm":
        dill.settings["recurse"] = True  # the job's program is not this one: what ours uses goes along
        place = {"venv_path": f"{sys.prefix}/bin/activate", "time": "24:00:00", **place}
    EXECUTORS[options.on]([labelling.blocks, runner], **place).run()


def take_over(out: Path, file: Path) -> None:
    """Take the answers into a journal. What a task has not asked yet, `rlaif run` asks.

    Raises:
        ConfigError: There are none.
    """
    files = sorted((out / "rows").glob("*.jsonl"))
    if not files:
        raise ConfigError(
            "there are no answers to take over",
            where=str(out / "rows"),
            remedy="give the folder that the tasks were given (--out), when one of them has ended",
        )
    answers = new = 0
    unread = sum(len(path.read_bytes().splitlines()) for path in files)
    with Journal(file) as journal:
        for document in JsonlReader(f"{out}/rows").run():
            unread -= 1
            for kind, rows in document.metadata["rollout_results"][0].items():
                answers += len(rows)
                new += journal.put_many(kind, rows)
    lost = f"; {count_of(unread, 'block')} cannot be read, and will be asked again" if unread else ""
    print(f"{file}: {count_of(answers, 'answer')}, {new:,} of them new{lost}")


def settings(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE`, the value as YAML."""
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def main() -> None:
    """Ask, or take the answers over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="one label stage, of responses")
    parser.add_argument("--out", required=True, type=Path, help="folder of answers, logs and checkpoints")
    parser.add_argument("--journal", type=Path, help="take the answers in --out into this journal")
    parser.add_argument("--tasks", type=int, default=1, help="parts of the work")
    parser.add_argument("--on", choices=EXECUTORS, default="local", help="where the tasks run")
    many = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--set", **many, help="of datatrove's executor: workers=8, gpus_per_task=1")
    parser.add_argument("--inference", **many, help="of datatrove's InferenceConfig: model_max_context=8192")
    options = parser.parse_args()
    if options.tasks < 1:
        parser.error("--tasks must be 1 or more")
    try:
        if options.journal:
            take_over(options.out, options.journal)
        else:
            ask(Labelling(load_recipe(options.recipe)), options.out.absolute(), options)
    except RlaifError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
