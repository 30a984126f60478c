"""`rlaif serve`: a base and its policies over HTTP."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from rlaif.cli.options import examples
from rlaif.cli.serve_parts import (
    consent_of_options,
    moderation_of,
    moderation_settings,
    open_chats,
    steering_of,
)

if TYPE_CHECKING:
    from rlaif.serving.passed import UpstreamSettings
    from rlaif.serving.residents import Residents
    from rlaif.serving.server import ModelServer, ServerSettings

__all__ = ["serve"]


@click.command(
    epilog=examples(
        "rlaif serve --model smollm2-135m --port 8000",
        "rlaif serve --policy runs/first/ppo --reward runs/first/reward",
        "rlaif serve --policy ppo=runs/first/ppo --policy best=runs/first/best-of-k",
        "rlaif serve --policy runs/first/ppo --moderation runs/guard/moderation --moderation names.yaml",
        "rlaif serve --policy runs/first/ppo --host 0.0.0.0 --token-file token.txt",
        "rlaif serve --policy runs/first/ppo --collect chats.sqlite --retain 30d",
        "rlaif serve --model smollm2-135m --directives docs/how-to/directives.yaml",
        "rlaif serve --upstream http://localhost:8001/v1 --port 8000",
    )
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="The base [default: that of the first policy]. With --upstream a name that may be asked for; repeat "
    "for several [default: all that it has].",
)
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
@click.option(
    "--moderation",
    "moderators",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR|FILE",
    help="Block what this flags, in prompts and answers: a trained moderator's folder, or a block list; "
    "repeat for several.",
)
@click.option(
    "--hold",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Tokens of an answer that are held back until what follows them is scored.",
)
@click.option(
    "--cascade",
    "judge",
    default="",
    metavar="JUDGE|self",
    help="Ask this judge, or the served base, before an answer is blocked; needs --constitution.",
)
@click.option(
    "--constitution",
    default=None,
    metavar="FILE",
    help="Holds the questions of the principles that the judge is asked by.",
)
@click.option(
    "--upstream",
    default=None,
    metavar="URL",
    help="Send requests on to this OpenAI-compatible server instead of loading a model.",
)
@click.option(
    "--upstream-key-env",
    default="",
    metavar="NAME",
    help="Environment variable with the upstream's key. [default: RLAIF_API_KEY]",
)
@click.option(
    "--upstream-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds that the upstream may be silent.",
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
    help="Completions sampled side by side. [default: 32 on a CPU, 256 on a GPU and at an upstream]",
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
    Requests that come at the same time are decoded in one batch. With --upstream another server answers. With
    --moderation nothing of an answer goes out before it is scored. At / is a page on which to chat with the
    models, and to compare two of them without their names. It listens on this machine alone until --host says
    otherwise, and then asks for a token. Ctrl-C ends it when the requests under way are done.
    Needs fastapi and uvicorn: pip install 'rlaif-toolkit[serve]'; --upstream needs the extra api as well.
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

    module = _extra_module("rlaif.serving.server", ("fastapi", "uvicorn", "starlette"), "serve")
    settings: ServerSettings = module.ServerSettings(
        token=module.read_token(options["token_file"], options["token_env"]),
        **{name: options[name] for name in ("host", "port", "rows", "queue", "most_tokens", "most_body")},
        grace=options["grace"],
        log_texts=options["log_texts"],
        consent=consent_of_options(options),
    )
    module.check_may_listen(settings.host, settings.token)

    def log(line: str) -> None:
        tell(line, err=True)

    moderators = moderation_settings(options)
    chats = open_chats(options, log)
    served = _residents(options, log) if options["upstream"] is None else _upstream(options)
    moderation = moderation_of(moderators, served, log)
    if moderation is not None:
        tell(f"moderated: {', '.join(moderation.moderator.categories)}")
    own = () if moderation is None else (moderation.from_elsewhere,)
    steering = steering_of(options, own, log)
    if steering is not None:
        tell(f"directives: {', '.join(steering.info()['ids']) or 'none in force today'}")
    if chats is not None:
        tell(f"what is asked with `store: true` is kept in {options['collect']}")
    server: ModelServer = module.ModelServer(
        served, settings, log, moderation=moderation, chats=chats, steering=steering
    )
    return server


def _residents(options: dict[str, Any], log: Callable[[str], None]) -> Residents:
    """The models in this process, loaded.

    Raises:
        ConfigError: Several bases are named; or see `open_residents`.
    """
    from rlaif.cli.echo import tell
    from rlaif.errors import ConfigError
    from rlaif.serving.residents import open_residents

    models = options["models"]
    if len(models) > 1:
        raise ConfigError(
            "one base is in memory, and --model names several",
            where="--model",
            remedy="name one; start a server for each",
        )
    residents = open_residents(
        models[0] if models else None,
        options["policies"],
        options["reward"],
        dtype=options["dtype"],
        device=options["device"],
        log=log,
    )
    tell(f"models: {', '.join(residents.roles)}")
    return residents


def _upstream(options: dict[str, Any]) -> UpstreamSettings:
    """Where the server is that answers.

    Raises:
        ConfigError: The address is none, or another option has no effect beside it.
        ModelError: The named variable holds no key.
    """
    from rlaif.engines.api.api_key import read_api_key
    from rlaif.engines.openai import checked_urls
    from rlaif.serving.passed import UpstreamSettings

    _check_upstream_alone(options)
    (url,) = checked_urls([options["upstream"]], where="--upstream")
    hosts = frozenset({urlsplit(url).hostname or ""})
    _extra_module("rlaif.serving.upstream", ("openai", "tenacity"), "api")
    return UpstreamSettings(
        url=url,
        key=read_api_key(hosts=hosts, variable=options["upstream_key_env"]),
        models=options["models"],
        timeout=options["upstream_timeout"],
        rows=options["rows"] or 256,
        queue=options["queue"],
    )


def _check_upstream_alone(options: dict[str, Any]) -> None:
    """Refuse what an upstream does not read.

    Raises:
        ConfigError: It is given.
    """
    from rlaif.errors import ConfigError

    given = {"--policy": options["policies"], "--reward": options["reward"]}
    given |= {f"--{name}": options[name] != "auto" for name in ("dtype", "device")}
    if extra := [name for name, value in given.items() if value]:
        raise ConfigError(
            f"{' and '.join(extra)}: that is for a model in this process, and --upstream loads none",
            where=extra[0],
            remedy="leave out --upstream, or let the upstream load what is to answer (vLLM: --lora-modules)",
        )


def _extra_module(name: str, packages: Sequence[str], extra: str) -> Any:
    """A part that needs an extra.

    Raises:
        ConfigError: It is not installed.
    """
    from rlaif.errors import ConfigError

    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name not in packages:
            raise
        raise ConfigError(
            f"a server needs the package {error.name}", remedy=f"pip install 'rlaif-toolkit[{extra}]'"
        ) from None
