"""The command that a label stage suggests for its judge can be typed as it is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from rlaif.cli.audit import audit
from rlaif.config import parse_recipe
from rlaif.engines.journaled import NullMemo
from rlaif.jobs.context import RunContext
from rlaif.jobs.trust import audit_command
from rlaif.progress import NoProgress

RECIPE = """
model: {model}
constitution: {constitution}
server: {{base_urls: ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"], api_key_env: MY_KEY}}
stages: [{{stage: sample}}, {{stage: label}}]
"""


@pytest.mark.parametrize("model", ["openai:org/model", "smollm2-135m", "/a folder/model"])
def test_the_command_reads_back_as_what_was_meant(tmp_path: Path, model: str) -> None:
    recipe = parse_recipe(RECIPE.format(model=model, constitution="my rules.yaml"), source="test")
    command = audit_command(model, RunContext(recipe, memo=NullMemo(), progress=NoProgress(), path=tmp_path))
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("rlaif", "audit")
    read = audit.make_context("audit", arguments, ignore_unknown_options=False)
    with click.Context(audit):
        assert read.params["judge"] == model
        assert read.params["constitution"] == "my rules.yaml"
        served = model.startswith("openai:")
        assert list(read.params["base_url"]) == (list(recipe.server.base_urls) if served else [])
        assert read.params["api_key_env"] == ("MY_KEY" if served else None)


@pytest.mark.parametrize(
    ("protocol", "read"), [(None, "both"), ("pointwise", "both"), ("rubric", "rubric"), ("cot", "cot")]
)
def test_the_audit_asks_by_the_protocol_that_labels(tmp_path: Path, protocol: str | None, read: str) -> None:
    """A protocol that `both` leaves out would go unaudited, and the advice would come again."""
    recipe = parse_recipe(RECIPE.format(model="smollm2-135m", constitution="my rules.yaml"), source="test")
    context = RunContext(recipe, memo=NullMemo(), progress=NoProgress(), path=tmp_path)
    _, _, *arguments = shlex.split(audit_command("smollm2-135m", context, protocol))
    assert audit.make_context("audit", arguments).params["protocol"] == read
