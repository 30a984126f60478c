"""Recipes and `--set` values that are no recipes: one message each, with its place, and never anything
else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from spine import call, environment

from rlaif.config.reading import apply_overrides, parse_recipe, read_yaml
from rlaif.errors import ConfigError, RlaifError
from rlaif.metrics import load_metric, measure
from rlaif.resources import shipped
from rlaif.types import Completion, Prompt

LAUGHS = "a: &a [x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)
HOSTILE = {
    "recursion": "a: &a [*a]",
    "laughs": LAUGHS,
    "merge": "base: {k: 1}\nx:\n  <<: {k: 2}",
    "object": "a: !!python/object:os.system x",
    "an int that is none": "seed: !!int abc",
    "digits": "seed: " + "9" * 5000,
    "depth": "[" * 500 + "]" * 500,
    "two documents": "a: 1\n---\nb: 2",
    "a tab": "stages:\n\t- stage: sample",
    "a list as key": "? [1, 2]\n: x",
    "a mapping as key": "{a: 1}: 2",
    "twice": "seed: 1\nname: x\nseed: 2",
    "twice below": "stages:\n  - stage: sample\n    k: 2\n    k: 3",
    "nul": "name: a\x00b",
    "half a character": "name: \ud800",
    "open quote": 'name: "x',
    "open brace": "{a: 1",
    "nothing": "",
    "a number": "7",
    "a text": "hello",
    "a list": "- a\n- b",
    "null": "null",
    "set": "!!set {a, b}",
    "binary": "a: !!binary abc",
    "an unknown tag": "a: !x y",
    "an unknown alias": "a: *b",
    "a date": "seed: 2024-13-45",
    "infinity": "seed: .inf",
    "nan": "stages: [{stage: sample, temperature: .nan}]",
    "no stages": "stages: []",
    "a stage that is none": "stages: [{stage: sampel}]",
    "stages as text": "stages: sample",
    "a stage as text": "stages: [sample]",
    "an unknown key": "stagse: []",
    "a directive": "%YAML 9.9\n---\na: 1",
    "a very long line": "name: " + "x" * 100_000,
    "sexagesimal": "seed: 1:99:99",
    "bool as seed": "seed: yes",
    "octal": "seed: 0o9",
    "a float as count": "stages: [{stage: sample, k: 1.5}]",
    "huge": "stages: [{stage: sample, k: 1e999}]",
    "negative": "stages: [{stage: sample, k: -1}]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_ends_in_one_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, source="r.yaml")
    assert "r.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [text for text in HOSTILE.values() if text and "\ud800" not in text],
    ids=[name for name, text in HOSTILE.items() if text and "\ud800" not in text],
)
def test_a_hostile_value_on_the_command_line_ends_in_one_error_or_is_data(text: str) -> None:
    told = ""
    try:
        values = apply_overrides({"stages": [{"stage": "sample"}]}, [f"stages.sample.k={text}"])
    except ConfigError as error:
        told, values = str(error), {}
    assert "--set" in told or set(values) == {"stages"}


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"r.yaml:4: the key `k` appears twice, first in line 3"):
        parse_recipe("stages:\n  - stage: sample\n    k: 2\n    k: 3\n", source="r.yaml")


def test_all_that_is_wrong_with_the_yaml_is_told_at_once_with_its_line() -> None:
    text = (
        "name: &n x\nseed: 0x_\nseed: 2\nstages:\n  - stage: !!set {a}\n    <<: {k: 2}\n    limit: "
        + "9" * 500
    )
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, source="r.yaml")
    assert [(problem.where, problem.what[:20]) for problem in caught.value.problems] == [
        ("r.yaml:1", "a YAML anchor `&n`"),
        ("r.yaml:2", "a value that cannot "),
        ("r.yaml:3", "the key `seed` appea"),
        ("r.yaml:5", "a YAML tag `tag:yaml"),
        ("r.yaml:6", "a YAML merge key `<<"),
        ("r.yaml:7", "a number of 500 char"),
    ]
    assert all(problem.remedy for problem in caught.value.problems)


def test_of_many_wrong_settings_fifty_are_told_and_all_are_counted() -> None:
    text = "stages: [{stage: sample}]\n" + "".join(f"k{n}: 1\n" for n in range(60))
    with pytest.raises(ConfigError, match="the recipe has 60 problems") as caught:
        parse_recipe(text, source="r.yaml")
    assert [problem.where for problem in caught.value.problems[:50]] == [f"r.yaml:{n}" for n in range(2, 52)]
    assert str(caught.value.problems[50]) == "… and 10 more"


@pytest.mark.parametrize("text", ["2024-01-01", "=", "<<", "! 5", "!!str 5", "'5'"])
def test_what_is_no_plain_number_stays_a_text(text: str) -> None:
    assert read_yaml(text, source="x")[1] == text.rpartition(" ")[2].strip("'")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", Path("/dev/zero")):
        said = call("recipe", "show", path)
        assert said.status == 1
        assert "not a regular file" in said.err


@pytest.mark.parametrize("path", sorted(shipped("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read_as_plain_yaml_reads_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert read_yaml(text, source=str(path))[1] == yaml.safe_load(text)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcdef", min_size=1, max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_values_come_back(value: object) -> None:
    text = yaml.dump(value, Dumper=_NoAliases, allow_unicode=True)
    assert read_yaml(text, source="x")[1] == yaml.safe_load(text)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


@given(st.text(max_size=200))
def test_any_text_is_a_value_or_one_error(text: str) -> None:
    with suppress(RlaifError):
        read_yaml(text, source="x")


def test_a_terminated_command_says_so_and_ends_with_its_status(tmp_path: Path) -> None:
    code = (
        "import os, signal, threading\nfrom rlaif.cli import main as program\n"
        "def run(**_): os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait(20)\n"
        "program.cli.main = run\nprogram.main([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 143, done.stderr
    assert "run the same command again" in done.stderr


def test_a_command_called_from_a_program_leaves_its_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert call("--version").status == 0
    assert signal.getsignal(signal.SIGTERM) is before


PROMPT, GIVEN = (
    Prompt(id="p", messages=()),
    Completion(id="p/0", prompt_id="p", index=0, text="a\x1btext", finish="stop", model="m"),
)


@pytest.mark.parametrize(
    "value",
    [None, True, "0.5", b"1", float("nan"), float("inf"), [1.0], object()],
    ids=lambda value: type(value).__name__ + str(value)[:4],
)
def test_a_reward_function_that_gives_no_number_is_named_with_the_completion(value: object) -> None:
    with pytest.raises(RlaifError, match=r"mine.*\n?.*") as caught:
        measure("mine", lambda prompt, given: value, PROMPT, GIVEN)  # type: ignore[arg-type,return-value]
    assert "p/0" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_function_that_leaves_the_program_is_caught_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(prompt: Prompt, given: Completion) -> float:
        raise SystemExit(3)

    with pytest.raises(RlaifError, match="the metric mine failed: SystemExit"):
        measure("mine", leave, PROMPT, GIVEN)
    (tmp_path / "bad_rewards.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be imported: SystemExit"):
        load_metric("bad_rewards:f")
