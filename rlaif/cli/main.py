"""The root command. A subcommand is imported when it is called, so that help stays quick and torch stays out
of it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from rlaif import __version__
from rlaif.cli.echo import tell, tell_error, write_any_text
from rlaif.errors import ConfigError, RankError, RlaifError, interruption
from rlaif.ranks import LAUNCHER, current
from rlaif.suggest import did_you_mean
from rlaif.text import one_line

__all__ = ["HUGE_PAGES", "cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("rlaif.cli.run:run", "Run a recipe: its stages in order, resumable."),
    "label": ("rlaif.cli.label:label", "Label pairs of completions under a constitution."),
    "sample": ("rlaif.cli.sample:sample", "Sample K completions per prompt."),
    "revise": ("rlaif.cli.revise:revise", "Critique and revise completions; write data for SFT."),
    "rubric": ("rlaif.cli.rubric:rubric", "Draft rubrics of prompts, for a person to edit."),
    "reward": ("rlaif.cli.reward:reward", "Train a reward model on preferences."),
    "sft": ("rlaif.cli.sft:sft", "Fine-tune a policy on completions to imitate."),
    "best-of-k": ("rlaif.cli.best_of_k:best_of_k", "Fine-tune a policy on the best of K of its own samples."),
    "ppo": ("rlaif.cli.ppo:ppo", "Train a policy by PPO against a reward."),
    "grpo": ("rlaif.cli.grpo:grpo", "Train a policy by GRPO: no value function."),
    "dpo": ("rlaif.cli.dpo:dpo", "Train a policy on preferences without a reward model."),
    "merge": ("rlaif.cli.merge:merge", "Write a full model: an adapter merged into its base."),
    "evaluate": ("rlaif.cli.evaluate:evaluate", "Measure policies on held-out prompts."),
    "compare": ("rlaif.cli.compare:compare", "Say which policy won, and at what cost."),
    "moderate": ("rlaif.cli.moderate:moderate", "Score a file of prompts or answers by a moderator."),
    "serve": ("rlaif.cli.serve:serve", "Serve a base and its policies over HTTP."),
    "study": ("rlaif.cli.study:study", "Run a recipe under several seeds: what holds over all."),
    "report": ("rlaif.cli.report:report", "Write the page of a run or study, to open in a browser."),
    "memory": ("rlaif.cli.memory:memory", "Print how much memory a recipe needs."),
    "push": ("rlaif.cli.push:push", "Upload a policy, reward model, judge or labels to the hub."),
    "constitution": ("rlaif.cli.constitution:constitution", "Show, check and import principle files."),
    "directives": ("rlaif.cli.directives:directives", "Show, check and try directives of an operator."),
    "prompts": ("rlaif.cli.prompts:prompts", "Print exactly what a judge will read."),
    "recipe": ("rlaif.cli.recipe:recipe", "Show recipes and their JSON schema."),
    "audit": ("rlaif.cli.audit:audit", "Audit a judge before its labels are trusted."),
    "collect": ("rlaif.cli.collect:collect", "Collect people's labels; export and count chats."),
    "judge": ("rlaif.cli.judge:judge", "Train a judge on people's labels, or another judge's."),
    "moderation": ("rlaif.cli.moderation:moderation", "Train a moderator of prompts and answers."),
    "journal": ("rlaif.cli.journal:journal", "Show and merge journals."),
    "runs": ("rlaif.cli.runs:runs", "List and show runs."),
    "models": ("rlaif.cli.models:models", "Fetch and show models."),
}
"""Name of every command: where it lives, and its line in `rlaif --help`."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's switch for 2 MB pages under large tensors on a CPU: judging is about a tenth faster. It reads it at
its first tensor."""
SPINNING = "GOMP_SPINCOUNT"
"""OpenMP's threads wait for each other so many turns before they sleep. With none PPO takes 1.4 times as
long; with as many as OpenMP chooses itself they hold up everything else on a busy machine. It is read when
torch is imported."""


def _of_a_stage(name: str) -> click.Command | None:
    """The command of a kind of stage that has none of its own, made from its settings."""
    from rlaif.config import STAGE_KINDS

    settings = STAGE_KINDS.get(name.replace("-", "_"))
    if settings is None or "_" in name:
        return None
    from rlaif.cli.stage import stage_command

    return stage_command(settings)


class _LazyGroup(click.Group):
    """Knows its commands by name and imports one only to run it or to print its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return _of_a_stage(cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = f"the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"there is no command {one_line(args[0])!r}; {did_you_mean(args[0], COMMANDS)}{known}")
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rlaif")
def cli() -> None:
    """Align language models with AI feedback in place of human labels.

    A constitution (a YAML file of principles) renders critique, revision and judge prompts; a judge model
    turns them into preference labels.

    \b
    Examples:
      rlaif run recipes/quickstart.yaml
      rlaif label --constitution constitutions/default.yaml
      rlaif label --constitution constitutions/warmth.yaml --dry-run
    """


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP: what is under way is ended as by Ctrl-C, so that the run says `interrupted` and lets
    go of its folder."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ended_cleanly_by_signals() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP raise `_Ended`; what stood for them before is put back.

    An error that came out of an interruption, while something was being left, is the interruption.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals on the main thread only
        return

    def end(number: int, _frame: object) -> None:
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, end)
        yield
    except Exception as error:
        if (ended := interruption(error)) is not None:
            raise ended from None
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be put back
                signal.signal(number, handler)


def _show_notices(show: Callable[..., None]) -> Callable[..., None]:
    """What shows warnings, but notices about settings as a line for the user, without a place in our code."""

    def shown(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if category.__name__ == "SettingNotice":
            tell(f"note: {message}", err=True)
        else:
            show(message, category, *place, **options)

    return shown


def _check_working_directory() -> None:
    """Refuse to start in a folder that was removed: libraries beneath would end the process without a word.

    Raises:
        ConfigError: It was.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "the working directory was removed", remedy="change to a folder that is there"
        ) from None


def _launched() -> bool:
    """Whether this is a rank of `--processes`, which says itself what ended its ranks from outside; unless it
    has ended before them."""
    return current().count > 1 and os.environ.get(LAUNCHER) == str(os.getppid())


def _os_problem(error: OSError) -> str:
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{error.strerror or error}"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the `rlaif` program: runs the command line and turns errors into one message and an exit
    status."""
    os.environ.setdefault(HUGE_PAGES, "1")
    os.environ.setdefault(SPINNING, "5000")
    write_any_text()
    warnings.showwarning = _show_notices(warnings.showwarning)
    try:
        _check_working_directory()
        with _ended_cleanly_by_signals():
            status: Any = cli.main(args=arguments, prog_name="rlaif", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.ClickException as error:
        first, status = current().to_tell(error.exit_code)
        if first:
            tell_error(error)
    except RlaifError as error:
        first, status = current().to_tell(1)
        if first and not (isinstance(error, RankError) and _launched()):
            tell(f"error: {error}", err=True)
    except BrokenPipeError:
        # The reader (a pager, `head`) has gone: there is nobody left to tell, and flushing at exit must not
        # complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _, status = current().to_tell(0)
    except OSError as error:  # what no part of the program expected: output to a full disk, for one
        first, status = current().to_tell(1)
        if first:
            tell(f"error: {_os_problem(error)}", err=True)
    except _Ended as ended:
        first, status = current().to_tell(128 + ended.number)
        if first and not _launched():
            tell("ended by a signal; run the same command again to continue where it stopped", err=True)
    except (KeyboardInterrupt, click.Abort):
        first, status = current().to_tell(INTERRUPTED)
        if first and not _launched():
            tell("interrupted; run the same command again to continue where it stopped", err=True)
    finally:
        if sys.exc_info()[0] is not None:  # an error that is ours to mend: it is told with its traceback
            current().to_tell(1)
        current().leave()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
