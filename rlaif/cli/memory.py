"""`rlaif memory`."""

from __future__ import annotations

import click

from rlaif.cli.echo import tell
from rlaif.cli.options import examples
from rlaif.config import load_recipe

__all__ = ["memory"]


@click.command(
    epilog=examples(
        "rlaif memory recipes/quickstart.yaml",
        "rlaif memory recipes/quickstart.yaml --set stages.ppo.micro_batch=4 --set dtype=float32",
        "rlaif memory recipes/gpu_70b.yaml --gpu 80 --processes 8",
    )
)
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Set a value; stages go by their names: stages.sample.k=2.",
)
@click.option(
    "--gpu",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="GB",
    help="Plan for a GPU with so many GB, here or elsewhere.  [default: the recipe's device on this machine]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="With --gpu: plan each of N processes, which have such a GPU each.",
)
def memory(recipe: str, overrides: tuple[str, ...], gpu: float | None, processes: int) -> None:
    """Print how much memory the stages of RECIPE need, before anything is loaded.

    What is in memory, the bytes of each part, the peak, and what to change if it does not fit; last, the peak
    of the whole run (if several processes do it, of each). Only the config and the tokenizer of a model are
    read. When a recipe runs, every stage prints this plan, and the measured peak at the end.
    """
    if gpu is None and processes > 1:
        raise click.UsageError(
            "--processes is planned for GPUs: say how large each is, as in --gpu 80 --processes 8"
        )
    from rlaif.models.memory import size
    from rlaif.pipeline.memory import Machine, recipe_memory

    machine = None if gpu is None else Machine.gpu(gpu, processes)
    plans = recipe_memory(load_recipe(recipe, overrides), machine=machine)
    for stage in plans:
        tell(f"{stage.name} ({stage.kind})")
        for line in stage.plan.lines():
            tell(f"  {line}")
    if not plans:
        tell("no stage of this recipe runs a model here")
        return
    largest = max(plans, key=lambda stage: stage.plan.peak)
    tell(
        f"the whole run: {size(largest.plan.peak)}, that of {largest.name} (each stage gives back what it "
        "freed)"
    )
