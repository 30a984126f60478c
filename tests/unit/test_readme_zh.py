"""The Chinese README says what the English one does: the same commands, links and sections."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
CJK = re.compile(r"[\u4e00-\u9fff]")


def blocks(text: str) -> list[str]:
    """Fenced and indented blocks with the kind of the fence; what a comment says may differ."""
    fenced = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^ {4}\S.*\n)+", outside, re.MULTILINE)
    return [re.sub(r" +# .*$", "", block, flags=re.MULTILINE) for block in (*fenced, *indented)]


def targets(text: str) -> list[str]:
    """Where links lead, without those between the two pages."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return sorted(target for target in found if not target.startswith("README"))


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_commands_are_the_same() -> None:
    assert blocks(CHINESE) == blocks(ENGLISH)
    assert len(blocks(ENGLISH)) >= 11
    assert sum("rlaif " in block for block in blocks(CHINESE)) >= 5


def test_the_commands_in_the_text_are_the_same() -> None:
    """Whatever stands in backquotes, outside of blocks and tables' words."""
    code = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
    english, chinese = set(code.findall(ENGLISH)), set(code.findall(CHINESE))
    assert english - chinese == set()
    assert chinese - english == set()


def test_the_sections_and_tables_are_as_many() -> None:
    for shape in (r"^## .+$", r"^\|", r"^- "):
        assert len(re.findall(shape, CHINESE, re.MULTILINE)) == len(re.findall(shape, ENGLISH, re.MULTILINE))
    tables = ["".join(re.findall(r"^\|.*\n", text, re.MULTILINE)) for text in (ENGLISH, CHINESE)]
    numbers = [sorted(re.findall(r"\d+(?:\.\d+)?", table)) for table in tables]
    assert numbers[0] == [each for each in numbers[1] if each != "1"]  # "8.7 × less" is "1/8.7" there
    assert len(numbers[0]) >= 15


def test_both_are_linked_and_in_their_language() -> None:
    assert "(README.zh.md)" in ENGLISH
    assert "(README.md)" in CHINESE
    prose = re.sub(r"^```.*?^```$", "", CHINESE, flags=re.MULTILINE | re.DOTALL)
    silent = [
        part
        for part in prose.split("\n\n")
        if len(part) > 80 and not part.startswith("    ") and not CJK.search(part)
    ]
    assert silent == []


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["README.md", "README.zh.md"])
def test_links_lead_somewhere(text: str) -> None:
    assert targets(text) == targets(ENGLISH)
    for target in targets(text):
        parts = urlsplit(target)
        page = ROOT / parts.path
        assert parts.scheme == ""
        assert page.exists(), target
        if parts.fragment:
            assert parts.fragment in anchors(page), target
