"""Block lists: what is found however it is written, what is not, and files that are refused line by line."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from rlaif.errors import ConfigError
from rlaif.moderation.alike import LOOK_ALIKES, alike
from rlaif.moderation.blocklist import BlockList, Entry
from rlaif.moderation.blocklist_files import load_block_list, parse_block_list
from rlaif.types import Message


def found(text: str, *entries: Entry) -> bool:
    """Whether an answer with this text is flagged, whole; and in pieces of one character, which must agree."""
    listed = BlockList("list", entries)
    (whole,) = listed.scores([[Message("user", "?"), Message("assistant", text)]])
    watch = listed.watch([Message("user", "?")])
    scores = [watch.push(character, None)["list"] for character in text]
    pieces = max([*scores, watch.close()["list"]]) == 1
    assert bool(whole["list"]) == pieces
    return pieces


@pytest.mark.parametrize(
    "text",
    [
        "by Wagner",
        "WAGNER!",
        "wagner's",
        "Ｗａｇｎｅｒ",  # full width
        "Wágnér",
        "Wa\u0301gner",
        "W\u0430gn\u0435r",  # Cyrillic
        "W\u03b1gner",  # Greek
        "Wag\u200bner",
        "Wag\u00adner",
        "𝐖𝐚𝐠𝐧𝐞𝐫",
        "我喜欢Wagner的音乐",
        "(Wagner)",
        "Wagner",
    ],
)
def test_a_word_is_found_however_it_is_written(text: str) -> None:
    assert found(text, Entry("Wagner"))


@pytest.mark.parametrize(
    "text", ["Wagnerian", "Bewagner", "wagner2", "Wagne r", "W a g n e r", "Wag-ner", ""]
)
def test_a_word_is_found_whole_only(text: str) -> None:
    assert not found(text, Entry("Wagner"))


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("W a g n e r", True),
        ("w.a.g.n.e.r", True),
        ("w - a - g - n - e - r", True),
        ("see Wagner", True),
        ("w_a_g_n_e_r said", True),
        ("so Wag n er", True),
        ("w....agner", False),  # more than three characters between
        ("cow a g n e r", False),  # the w belongs to another word
        ("w a g n e rs", False),
        ("w a g n e", False),
    ],
)
def test_a_spaced_word(text: str, spaced: bool) -> None:
    assert found(text, Entry("Wagner", spaced=True)) == spaced


def test_words_without_spaces_have_no_bounds() -> None:
    assert found("我听瓦格纳的歌剧", Entry("瓦格纳"))
    assert found("ワーグナーを聴く", Entry("ワーグナー"))
    assert not found("瓦格的纳", Entry("瓦格纳"))
    assert found("瓦 格 纳", Entry("瓦格纳", spaced=True))
    assert not found("ガラス", Entry("カラス"))  # glass is no crow: voicing marks are no accents


def test_words_of_other_scripts_are_found_whatever_their_case() -> None:
    assert found("ВАГНЕР", Entry("Вагнер"))
    assert not found("вагнеры", Entry("Вагнер"))
    assert found("ΒΆΓΚΝΕΡ", Entry("Βάγκνερ"))
    assert found("STRASSE", Entry("Straße"))


def test_several_words_are_one_entry_whatever_the_space_between() -> None:
    assert found("in New\n  York.", Entry("new york"))
    assert not found("in Newyork", Entry("new york"))
    assert found("I write C++.", Entry("c++"))


def test_a_regex_reads_the_text_as_it_is_written() -> None:
    opus = Entry(r"\bop\. ?\d+\b", regex=True)
    assert found("his op. 27, no. 2", opus)
    assert found("his op. 27", opus)
    assert not found("his Op. 27", opus)
    assert not found("the shop. 27", opus)
    assert not found("op. 27th", opus)
    assert not found("op. 27" + "7" * 60 + "th", opus)
    assert found("fo" + "o" * 100, Entry("fo+", regex=True))
    assert not found("foobar", Entry("foo$", regex=True))
    assert not found("x" * 3000 + "foo", Entry("^foo", regex=True))
    assert found("foo", Entry(r"^foo", regex=True))


def test_a_regex_reaches_512_characters_back() -> None:
    far = Entry("(?s)begin.*end!", regex=True)
    assert found("begin" + " " * 400 + "end!", far)
    assert not found("begin" + " " * 2000 + "end!", far)


def test_until_the_next_token_a_word_may_go_on() -> None:
    watch = BlockList("list", (Entry("bad"),)).watch([Message("user", "?")])
    assert watch.push("a bad", None) == {"list": 0.0}
    assert watch.undecided
    assert watch.push("", None) == {"list": 0.0}
    assert watch.undecided
    assert watch.push("ge", None) == {"list": 0.0}
    assert not watch.undecided
    assert watch.push(" bad", None) == {"list": 0.0}
    assert watch.push("!", None) == {"list": 1.0}
    assert watch.push(" and", None) == {"list": 0.0}  # of the window that ends here
    watch = BlockList("list", (Entry("坏"),)).watch([Message("user", "?")])
    assert watch.push("很坏", None) == {"list": 1.0}
    assert not watch.undecided
    assert watch.push("的", None) == {"list": 0.0}


def test_names_that_are_harmless_in_the_question_and_forbidden_in_the_answer() -> None:
    listed = BlockList(
        "names", (Entry("Wagner", where="answer"), Entry("Brahms", where="prompt"), Entry("Liszt"))
    )

    def flags(*turns: tuple[str, str]) -> float:
        (scores,) = listed.scores([[Message(role, text) for role, text in turns]])  # type: ignore[arg-type]
        return scores["names"]

    assert flags(("user", "Did Wagner write this song?")) == 0
    assert flags(("user", "Who?"), ("assistant", "Wagner.")) == 1
    assert flags(("user", "Who?"), ("assistant", "Brahms.")) == 0
    assert flags(("user", "Brahms?")) == 1
    assert flags(("user", "Liszt?")) == flags(("user", "?"), ("assistant", "Liszt")) == 1
    # What stands before the answer was sent by the client, whoever is said to have written it.
    assert flags(("user", "?"), ("assistant", "Brahms"), ("user", "?")) == 1
    assert flags(("user", "?"), ("assistant", "Wagner"), ("user", "?")) == 0
    assert flags(("user", "Wag"), ("assistant", "ner")) == 0
    assert flags(("user", "Bra"), ("user", "hms")) == 0


def test_an_answer_may_continue_what_was_begun() -> None:
    watch = BlockList("names", (Entry("Wagner"),)).watch(
        [Message("user", "?"), Message("assistant", "It was Wag")]
    )
    assert watch.push("ner", None) == {"names": 0.0}
    assert watch.close() == {"names": 1.0}


def test_the_digest_changes_with_what_is_looked_for() -> None:
    lists = [
        BlockList("a", (Entry("x"),)),
        BlockList("b", (Entry("x"),)),
        BlockList("a", (Entry("y"),)),
        BlockList("a", (Entry("x", where="answer"),)),
        BlockList("a", (Entry("x", spaced=True),)),
        BlockList("a", (Entry("x", regex=True),)),
    ]
    assert len({each.digest for each in lists}) == len(lists)
    assert BlockList("a", (Entry("x"),)).digest == lists[0].digest
    assert lists[0].categories == ("a",)
    assert lists[0].thresholds == {"a": 1.0}
    assert lists[0].layers == ()


def test_look_alikes_are_letters_of_other_scripts_that_stand_for_one_of_ascii() -> None:
    for code, letter in LOOK_ALIKES.items():
        assert unicodedata.name(chr(code)).startswith(("CYRILLIC SMALL", "GREEK", "CYRILLIC LETTER"))
        assert chr(code).casefold() == chr(code)
        assert re.fullmatch("[a-z]", letter if isinstance(letter, str) else chr(letter))
    assert alike(alike("Ｗágnеr В")) == alike("Ｗágnеr В") == "wagner b"


YAML = r"""
name: composers
where: answer
entries:
  - Wagner
  - 1984
  - word: 瓦格纳
    where: both
  - word: Liszt
    spaced: true
  - regex: '\bop\. ?\d+\b'
    where: prompt
"""


def test_a_list_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(YAML, "utf-8")
    listed = load_block_list(tmp_path / "list.yaml")
    assert listed.name == "composers"
    assert listed.entries == (
        Entry("Wagner", "answer"),
        Entry("1984", "answer"),
        Entry("瓦格纳", "both"),
        Entry("Liszt", "answer", spaced=True),
        Entry(r"\bop\. ?\d+\b", "prompt", regex=True),
    )
    assert parse_block_list("entries: [a]", source="x", name="stem").name == "stem"


def test_the_list_in_the_docs_is_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "moderate-a-stream.md"
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(parse_block_list(block, source=page.name, name="docs").entries) == 4


def test_a_list_in_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# composers\nWagner\n\n  Liszt # another\n", "utf-8")
    listed = load_block_list(tmp_path / "names.txt")
    assert listed == BlockList("names", (Entry("Wagner"), Entry("Liszt")))


def test_every_problem_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        "\n".join(
            [
                "nmae: x",
                "entries:",
                "  - word: ok",
                "    where: nowhere",
                "  - [a]",
                "  - regex: '('",
                "  - regex: 'x*'",
                '  - word: "\u200b"',
                "  - word: a",
                "    spaced: true",
                "  - word: ok",
                "    spaced: maybe",
                f"  - {'x' * 201}",
                "  - word: [a]",
                "  - {word: a, regex: b}",
                "  - word: a",
                "    whre: both",
                f"  - regex: {'x' * 2001}",
            ]
        ),
        "utf-8",
    )
    with pytest.raises(ConfigError) as refused:
        load_block_list(wrong)
    told = [(int(each.where.rpartition(":")[2]), each.what) for each in refused.value.problems]
    assert [line for line, _ in told] == [1, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 17, 18]
    for part in ("`nmae`", "`where` is `nowhere`", "no word", "not a regex", "empty text", "nothing is left"):
        assert any(part in what for _, what in told), part


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no list"),
        ("- a", "a list instead of a mapping"),
        ("entries: x", "no list of entries"),
        ("entries: []", "there are no entries"),
        ("name: ''\nentries: [a]", "a name of no or too many characters"),
        ("entries: [a", "not valid YAML"),
        ("where: [a]\nentries: [a]", "`where` is a list"),
    ],
)
def test_files_that_are_no_lists(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_block_list(text, source="list.yaml", name="list")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the block list cannot be read"):
        load_block_list(tmp_path / "none.yaml")
    (tmp_path / "empty.txt").write_text("# nothing\n", "utf-8")
    with pytest.raises(ConfigError, match="there are no entries"):
        load_block_list(tmp_path / "empty.txt")
    (tmp_path / "unseen.txt").write_text("fine\n\u200b\n", "utf-8")
    with pytest.raises(ConfigError, match=r"unseen.txt:2: a word that nothing is left of"):
        load_block_list(tmp_path / "unseen.txt")
