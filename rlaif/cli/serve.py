"""`rlaif serve`: a base and its policies over HTTP."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlaif.chats.keeper import ChatKeeper
    from rlaif.serving.server import ModelServer, ServerSettings
    from rlaif.serving.steering import Steering

__all__ = ["serve"]


@click.command(
    epilog=examples(
        "rlaif serve --model smollm2-135m --port 8000",
        "rlaif serve --policy runs/first/ppo --reward runs/first/reward",
        "rlaif serve --policy ppo=runs/first/ppo --policy best=runs/first/best-of-k",
        "rlaif serve --policy runs/first/ppo --host 0.0.0.0 --token-file token.txt",
        "rlaif serve --policy runs/first/ppo --collect chats.sqlite --retain 30d",
        "rlaif serve --model smollm2-135m --directives docs/how-to/directives.yaml",
    )
)
@click.option("--model", default=None, metavar="MODEL", help="The base. [default: that of the first policy]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="[NAME=]DIR",
    help="A policy on the base: folder of an adapter, or of the stage that trained it; repeat for several.",
)
@click.option(
    "--reward",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="A reward model on the base, or the stage's folder: requests may then ask for n_best.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free one."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="What clients must send as their key; needed where other machines can ask.",
)
@click.option("--token-env", default=None, metavar="NAME", help="The same, from an environment variable.")
@click.option(
    "--rows",
    type=click.IntRange(1, 4096),
    default=None,
    help="Completions sampled side by side. [default: 32 on a CPU, 256 on a GPU]",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests that wait; more are refused.",
)
@click.option(
    "--max-tokens",
    "most_tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Longest completion that a request may ask for, and the length where it says nothing.",
)
@click.option(
    "--max-body",
    "most_body",
    type=click.IntRange(min=1024),
    default=1 << 20,
    show_default=True,
    help="Bytes of a request.",
)
@click.option(
    "--grace",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Seconds that requests under way have when the server stops.",
)
@click.option("--log-texts", is_flag=True, help="Log what is asked and answered, too.")
@click.option(
    "--collect",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Keep what was asked with `store: true`, and people's votes, in this SQLite file.",
)
@click.option(
    "--consent",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="What people are told before they agree. [default: a built-in text]",
)
@click.option(
    "--retain",
    default=None,
    metavar="AGE",
    help="Delete what was kept longer ago: 30d, 12h, 2w. [default: never]",
)
@click.option(
    "--directives",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Directives that every answer follows; an edit of the file holds from the next request on.",
)
@click.option(
    "--directives-judge",
    default=None,
    metavar="MODEL",
    help="Who is asked the questions of `when: {judge: ...}`; loaded beside the base.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
def serve(**options: Any) -> None:
    """Serve a base and its policies with OpenAI's chat completions API.

    Each --policy is a model name of its own on the one base in memory, which answers under its own name.
    Requests that come at the same time are decoded in one batch. At / is a page on which to chat with them,
    and to compare two of them without their names. It listens on this machine alone until --host says
    otherwise, and then asks for a token. Ctrl-C ends it when the requests under way are done.
    Needs fastapi and uvicorn: pip install 'rlaif-toolkit[serve]'.
    """
    from rlaif.cli.echo import tell

    server = _opened(options)
    tell(f"serving {server.url}/v1 and a page at {server.url}/ (Ctrl-C ends)")
    try:
        server.run_until_stopped()
    except KeyboardInterrupt:  # a signal, after what was under way has ended
        tell("stopped")


def _opened(options: dict[str, Any]) -> ModelServer:
    """The server with its models loaded; it listens already."""
    from rlaif.cli.echo import tell

    module = _server_module()
    settings: ServerSettings = module.ServerSettings(
        token=module.read_token(options["token_file"], options["token_env"]),
        **{name: options[name] for name in ("host", "port", "rows", "queue", "most_tokens", "most_body")},
        grace=options["grace"],
        log_texts=options["log_texts"],
        consent=_consent(options),
    )
    module.check_may_listen(settings.host, settings.token)

    def log(line: str) -> None:
        tell(line, err=True)

    from rlaif.serving.residents import open_residents

    chats = _chats(options, log)
    residents = open_residents(
        options["model"],
        options["policies"],
        options["reward"],
        dtype=options["dtype"],
        device=options["device"],
        log=log,
    )
    tell(f"models: {', '.join(residents.roles)}")
    server: ModelServer = module.ModelServer(
        residents, settings, log, chats, steering=_steering(options, log)
    )
    return server


def _consent(options: dict[str, Any]) -> str:
    """What people are told about `--collect`.

    Raises:
        ConfigError: The file cannot be read, or nothing is collected.
    """
    from rlaif.chats.opening import age_of, consent_of
    from rlaif.errors import ConfigError

    for name in ("consent", "retain"):
        if options[name] is not None and options["collect"] is None:
            raise ConfigError("nothing is collected", where=f"--{name}", remedy="add --collect FILE")
    return consent_of(options["consent"], age_of(options["retain"]))


def _chats(options: dict[str, Any], log: Callable[[str], None]) -> ChatKeeper | None:
    """The file of `--collect`, open."""
    if options["collect"] is None:
        return None
    from rlaif.chats.keeper import ChatKeeper
    from rlaif.chats.opening import age_of
    from rlaif.chats.store import ChatsFile

    return ChatKeeper(ChatsFile(options["collect"]), retain=age_of(options["retain"]), log=log)


def _steering(options: dict[str, Any], log: Callable[[str], None]) -> Steering | None:
    """The directives of the server.

    Raises:
        ConfigError: They cannot be used, or a judge is named that nobody asks.
    """
    from rlaif.errors import ConfigError
    from rlaif.serving.steering import open_steering

    if options["directives"] is None:
        if options["directives_judge"] is not None:
            what, remedy = "there are no directives to judge for", "add --directives FILE"
            raise ConfigError(what, where="--directives-judge", remedy=remedy)
        return None
    own = {name: options[name] for name in ("dtype", "device")}
    return open_steering(options["directives"], options["directives_judge"], log=log, **own)


def _server_module() -> Any:
    """The part that needs the extra.

    Raises:
        ConfigError: It is not installed.
    """
    from rlaif.errors import ConfigError

    try:
        return importlib.import_module("rlaif.serving.server")
    except ImportError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise ConfigError(
            f"a server needs the package {error.name}", remedy="pip install 'rlaif-toolkit[serve]'"
        ) from None
