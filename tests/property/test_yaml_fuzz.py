"""Whatever is given as a recipe, a `--set` value or a constitution: a value or one of our errors, soon, and
nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.config.reading import apply_overrides, load_recipe, parse_recipe
from rlaif.constitution.load import load_constitution, parse_constitution
from rlaif.errors import RlaifError
from rlaif.types import Constitution

SECONDS = 5.0
"""Of processor time for one text; an idle machine takes milliseconds."""
PIECES = (
    "a",
    "name",
    "stages",
    "stage",
    "sample",
    "label",
    "principles",
    "id",
    "question",
    "weight",
    "answers",
    "examples",
    "k",
    ":",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\n    - ",
    "[",
    "]",
    "{",
    "}",
    ",",
    ", ",
    "&a",
    "*a",
    "!",
    "!!int",
    "!!python/object",
    "<<",
    "|",
    ">",
    "|-\n ",
    "'",
    '"',
    "#",
    "%",
    "@",
    "`",
    "?",
    "? ",
    "---\n",
    "...\n",
    "~",
    "null",
    "true",
    "1",
    "-1",
    "1e999",
    ".nan",
    ".inf",
    "0x1F",
    "0o7",
    "1_000",
    "2024-13-45",
    "12:30:45",
    "\t",
    "\r",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x00",
    "\ud800",
    "\udcff",
    "\x1b[2J",
    "\\",
    "\\ud800",
    "é",
    "文",
    "😀",
    "9" * 50,
    "9" * 5000,
    "[" * 40,
    "{a: " * 40,
    "- " * 40,
)
YAML = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30).map("".join)
TEXTS = YAML | st.text(alphabet=st.characters(codec=None), max_size=60)
RECIPE = "name: r\nstages:\n  - stage: sample\n    {}\n"
CONSTITUTION = "name: c\nprinciples:\n  - id: a\n    question: Is it good?\n    {}\n"
BEFORE = (
    "",
    "name=",
    "seed=",
    "stages.sample.k=",
    "stages=",
    "stages.sample=",
    "a.b.c=",
    "=",
    ".=",
    "stages.=",
)
KEYS = st.sampled_from(
    ("", "k: ", "temperature: ", "weight: ", "tags: ", "answers: ", "lead: ", "name: ", "prompts: ")
)


def timed_out(began: float) -> bool:
    """Hypothesis's own deadline is wall-clock time, which says little on a busy machine."""
    return time.process_time() - began > SECONDS


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_any_text_as_a_recipe(text: str) -> None:
    began = time.process_time()
    with_error(lambda: parse_recipe(text, source="r.yaml"))
    assert not timed_out(began)


@settings(deadline=None, max_examples=200)
@given(KEYS, TEXTS)
def test_any_text_inside_a_recipe(key: str, text: str) -> None:
    began = time.process_time()
    with_error(lambda: parse_recipe(RECIPE.replace("{}", key + text), source="r.yaml"))
    assert not timed_out(began)


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.sampled_from(BEFORE))
def test_any_text_as_an_override(text: str, before: str) -> None:
    began = time.process_time()
    values = {"name": "r", "stages": [{"stage": "sample"}]}
    found = with_error(lambda: apply_overrides(values, [before + text]))
    assert found is None or isinstance(found, dict)
    with_error(lambda: parse_recipe(RECIPE.replace("{}", ""), source="r.yaml", overrides=[before + text]))
    assert not timed_out(began)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_any_text_as_a_constitution(text: str) -> None:
    began = time.process_time()
    found = with_error(lambda: parse_constitution(text, source="c.yaml"))
    assert found is None or isinstance(found, Constitution)
    assert not timed_out(began)


@settings(deadline=None, max_examples=200)
@given(KEYS, TEXTS)
def test_any_text_inside_a_constitution(key: str, text: str) -> None:
    began = time.process_time()
    found = with_error(lambda: parse_constitution(CONSTITUTION.replace("{}", key + text), source="c.yaml"))
    assert found is None or isinstance(found, Constitution)
    assert not timed_out(began)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80) | YAML.map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_any_bytes_as_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with_error(lambda: load_recipe(file))
    with_error(lambda: load_constitution(file))


@given(st.text(alphabet=st.characters(codec=None), min_size=1, max_size=60))
def test_any_text_as_a_name(name: str) -> None:
    with_error(lambda: load_recipe(name))
    with_error(lambda: load_constitution(name))


def with_error(read: Callable[[], object]) -> object:
    """What `read` gives, or `None` where it raises one of our errors."""
    try:
        return read()
    except RlaifError:
        return None
