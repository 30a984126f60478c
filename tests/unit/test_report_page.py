"""`report.html`: what stands on it, what cannot be made to run in it, and that a run always has one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reported import EVIL, PROMPTS, STAGES, write_run, write_study
from spine import call

from rlaif import plot
from rlaif.errors import RunError
from rlaif.pipeline.report import REPORT, reported, try_report, write_report
from rlaif.report.page import run_page
from rlaif.report.page import samples as browser
from rlaif.report.page.render import script_json
from rlaif.results.study import Study


class Read(HTMLParser):
    """The elements of a page, its texts, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        if where == "script" and self.tags[-1][1].get("type") == "application/json":
            where = "rows"
        self.texts[where] = self.texts.get(where, "") + data

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.texts["rows"])
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "told")


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(text: str) -> Read:
    return Read(text)


def test_nothing_of_a_run_becomes_markup(text: str, read: Read) -> None:
    scripts = [attributes for tag, attributes in read.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "rows"}, {}]
    assert "img" not in {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") or name == "style" for _, each in read.tags for name in each)
    assert read.open == []
    for character in "\u202e\u2066\u2028\x1b":
        assert character not in text
    assert re.search(r"<!--", text.replace("<!doctype", "")) is None


def test_the_texts_are_those_of_the_run(read: Read) -> None:
    rows = {row["id"]: row for row in read.rows()}
    said = rows["evaluate/p1/0"]["sides"][1]["text"]
    assert said.startswith("ppo 1 <script>document.title = 'run'</script></script><!-- <img")
    assert "&amp; &lt;b&gt;" in said
    assert "{{ 7 * 7 }}" in said
    assert r"\u202eevil" in said
    assert "a note <script>" in read.texts["li"]


def test_only_its_own_style_and_script_may_act(read: Read) -> None:
    policy = next(str(each["content"]) for tag, each in read.tags if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    asked = [each.get(name) for _, each in read.tags for name in ("src", "href") if each.get(name)]
    assert all(str(address).startswith(("#", "data:,")) for address in asked)


def test_ids_are_unique_and_what_refers_to_them_finds_them(read: Read) -> None:
    ids = [each["id"] for _, each in read.tags if each.get("id")]
    assert len(ids) == len(set(ids))
    named = [id for _, each in read.tags for id in str(each.get("aria-labelledby") or "").split()]
    assert set(named) <= set(ids)
    shown = [str(each["href"])[1:] for tag, each in read.tags if tag == "use"]
    assert shown
    assert set(shown) <= set(ids)


def test_every_table_and_picture_can_be_read_aloud(read: Read) -> None:
    assert {each.get("scope") for tag, each in read.tags if tag == "th"} == {"col", "row"}
    pictures = [each for tag, each in read.tags if tag == "svg"]
    assert len(pictures) == 7
    assert all(each["role"] == "img" and each["aria-labelledby"] for each in pictures)
    assert [tag for tag, _ in read.tags].count("desc") == 7
    headings = [tag for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert headings.count("h1") == 1
    assert set(headings) == {"h1", "h2", "h3"}


def test_the_readings_of_a_monitor_are_a_picture_with_what_they_say(run: Path, tmp_path: Path) -> None:
    pictures = next(each.pictures for each in run_page(run).sections if each.id == "pictures")
    picture = next(each for each in pictures if each.title.startswith("Monitor of ppo"))
    assert "gold stops rising at a KL of about 1.9 nats" in picture.about
    assert [row[0] for row in picture.numbers[0].rows] == ["0", "1", "2", "3", "4"]
    assert picture.numbers[0].rows[3][2].startswith("2 [1.9")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged/ppo/statistics.json").write_text("{")
    lacking = run_page(tmp_path / "damaged").missing
    assert any(line.startswith("the readings of the monitor of `ppo` is left out") for line in lacking)


def test_rows_hold_every_verdict_in_both_orders_and_say_why_they_are_worth_reading(read: Read) -> None:
    rows = {row["id"]: row for row in read.rows()}
    assert len(rows) == 2 * PROMPTS
    assert {id: row["flags"] for id, row in rows.items() if row["flags"]} == {
        "evaluate/p0/0": ["flip"],
        "evaluate/p1/0": ["loss", "invalid"],
        "evaluate/p2/0": ["diverged"],
        "label/p0/0-1": ["flip"],
        "label/p1/0-1": ["invalid"],
    }
    kind, calm = rows["evaluate/p0/0"]["asked"]
    assert kind == {
        "of": "ppo",
        "judge": "",
        "principle": "kind",
        "answers": {"first": 0.731059, "second": 0.268941},
        "flip": True,
    }
    assert calm["answers"]["second"] == pytest.approx(0.622459)
    assert rows["label/p1/0-1"]["asked"][1]["answers"]["second"] == "invalid: no label <b>"
    assert rows["label/p3/0-1"]["prompt"][0][0] == "user"


def test_the_same_run_gives_the_same_bytes(run: Path, text: str, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "elsewhere")
    assert write_report(tmp_path / "elsewhere").read_text(encoding="utf-8") == text


def test_without_matplotlib_the_numbers_stay(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "available", lambda: False)
    found = write_report(run, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<svg" not in found
    assert "pip install 'rlaif-toolkit[report]'" in found.replace("&#39;", "'")
    assert len(Read(found).rows()) == 2 * PROMPTS


@pytest.mark.parametrize("finished", [0, 1, 2, 3, 4, 5])
def test_a_partial_run_has_a_page_that_says_what_is_missing(finished: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=STAGES[:finished], status="failed", text="word")
    page = run_page(run)
    assert page.samples is not None
    lacking = ", ".join(f"`{name}`" for name in STAGES[finished:])
    assert page.missing == (f"the run is failed; not finished: {lacking}",)
    assert page.samples.total == PROMPTS * ((finished > 1) + (finished > 4))
    assert page.sections[0].title == "Verdict"
    assert Read(write_report(run).read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("evaluate/evaluation.json", "{}", "evaluation.json of `evaluate` is left out"),
        ("evaluate/verdicts.jsonl", '{"comparison_id": 1}\n[]\n', "samples of `evaluate` is left out"),
        ("compare/comparison.json", '{"verdict": []}', "comparison.json of `compare` is left out"),
        ("label/statistics.json", "[", "what `label` found is left out"),
        ("label/preferences.jsonl", '{"id": "x"}\n', "samples of `label` is left out"),
        ("reward/report.json", '{"reliability": [{}]}', "the calibration of `reward` is left out"),
        ("ppo/metrics.jsonl", "no\n", "the picture of training is left out"),
        ("ppo/manifest.json", "", "stage `ppo` is left out"),
        ("spending.jsonl", "no\nno\n", "spending.jsonl is left out"),
    ],
)
def test_a_damaged_file_takes_nothing_else_with_it(
    file: str, content: str, said: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", text="word")
    (run / file).write_text(content)
    page = run_page(run)
    assert any(said in line for line in page.missing)
    assert {"verdict", "pictures", "cost"} <= {section.id for section in page.sections}


def test_a_large_run_is_shown_evenly_and_the_rest_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", text="word", prompts=40)
    monkeypatch.setattr("rlaif.report.page.run.MOST_ROWS", 20)
    few = run_page(run).samples
    assert (len(few.rows), few.total) == (20, 80)
    assert [json.loads(row)["id"] for row in few.rows][:3] == [
        "evaluate/p0/0",
        "evaluate/p4/0",
        "evaluate/p8/0",
    ]
    monkeypatch.setattr("rlaif.report.page.run.MOST_ROWS", 2000)
    monkeypatch.setattr("rlaif.report.page.run.MOST_BYTES", 5000)
    small = run_page(run).samples
    assert sum(len(row.encode()) for row in small.rows) <= 5000
    assert small.total == 80
    assert small.rows


def test_a_picture_that_cannot_be_drawn_takes_nothing_else_with_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", text="word")
    steps = [{"step": 0, "reward": "<b>", "kl": [1]}, {"step": 1, "reward": 2.0, "kl": 1.0}]
    (run / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    text = write_report(run).read_text(encoding="utf-8")
    assert "This picture cannot be drawn from its numbers" in text
    assert text.count("<svg") == 6
    assert Read(text).open == []


def test_labels_in_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    run = write_run(tmp_path / "run", stages=STAGES[:2], text="word")
    rows = list(browser.json_rows(run / "label" / "preferences.jsonl"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), run / "label" / "preferences.parquet")
    manifest = (run / "label" / "manifest.json").read_text()
    before = run_page(run).samples
    (run / "label" / "manifest.json").write_text(manifest.replace("preferences.jsonl", "preferences.parquet"))
    assert run_page(run).samples == before


def test_json_in_a_script_is_the_same_value() -> None:
    value = {"</script>": "<!-- & \u2028\u2029 \x85 日本"}
    told = script_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(told) == value
    assert not set("<>&\u2028\u2029\x85") & set(told)


def test_the_page_of_a_study(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", text=EVIL[:40])
    said = call("report", folder)
    assert said.status == 0
    read = Read((folder / REPORT).read_text(encoding="utf-8"))
    links = [each["href"] for tag, each in read.tags if tag == "a"]
    assert "seed-0/report.html" in links
    assert [tag for tag, _ in read.tags].count("svg") == 1
    assert "Winner on gold over 2 seeds" in read.texts["li"]
    found = Study.from_dict(json.loads((folder / "study.json").read_text()))
    assert json.loads(json.dumps(found.as_dict())) == json.loads((folder / "study.json").read_text())


def test_pictures_are_written_as_files(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    told = call("report", str(folder), "--pictures", str(tmp_path / "pictures")).out
    places = sorted((tmp_path / "pictures").iterdir())
    assert places
    assert all(place.read_bytes().startswith(b"\x89PNG") for place in places)
    assert all(str(place) in told for place in places)
    before = [place.read_bytes() for place in places]
    call("report", str(folder), "--pictures", str(tmp_path / "pictures"))
    assert [place.read_bytes() for place in places] == before


def test_a_damaged_study_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    (folder / "study.json").write_text('{"seeds": [1]}')
    with pytest.raises(RunError, match=r"study\.json is not what a study writes"):
        write_report(folder)


def test_the_command_says_where_the_page_is(run: Path, tmp_path: Path) -> None:
    said = call("report", run, "--out", tmp_path / "page.html")
    assert said.out == f"{tmp_path / 'page.html'}: open it in a browser\n"
    assert (tmp_path / "page.html").exists()
    refused = call("report", tmp_path)
    assert refused.status == 1
    assert "the folder of no run and of no study" in refused.err
    assert "there is no such folder" in call("report", tmp_path / "nowhere").err


def test_a_run_does_not_fail_for_its_report(tmp_path: Path) -> None:
    run, heard = write_run(tmp_path / "run", stages=STAGES[:1]), list[str]()
    (run / REPORT).mkdir()
    assert try_report(run, heard.append) is None
    assert heard[0].startswith("report.html was not written: ")
    (run / REPORT).rmdir()
    with pytest.raises(RunError, match="stopped"), reported(run, heard.append):
        raise RunError("stopped")
    assert "not finished" in (run / REPORT).read_text(encoding="utf-8")


def test_logs_for_inspect_say_what_they_need(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    said = call("report", run, "--out", tmp_path / "page.html", "--inspect")
    assert said.status == 1
    assert "pip install 'rlaif-toolkit[inspect]'" in said.err
