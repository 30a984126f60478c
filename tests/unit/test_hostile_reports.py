"""Reports show what comes from outside as text: no id, tag, name or completion adds a row, a heading, an
image, a link or HTML."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rlaif.audit.differences import Change, Difference, Influence, Mover
from rlaif.report.audit import difference_markdown
from rlaif.report.markdown import code, named, quoted, sentence, table
from rlaif.report.model_card import ModelCard, card_markdown
from rlaif.report.samples import completions_markdown, preferences_markdown, revisions_markdown
from rlaif.stats import Estimate

HOSTILE = (
    "a | b\n# Heading\n![i](http://evil.example/p.png)<script>x</script>`code` [l](javascript:x) "
    "https://evil.example "
    "www.evil.example me@evil.example &lt; **b** _i_ \x1b[2J\u202e\ud800"
)
LIVE = re.compile(
    r"(?<!\\)!\[|\](?<!\\\])\(|(?<!\\)<\w|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]|(?<!\\)://|(?<!\\)&lt;"
    r"|(?<=www)\.|(?<!\\)@evil"
)


def check(markdown: str, headings: int) -> None:
    assert LIVE.search(markdown) is None, LIVE.search(markdown)
    found = [line for line in markdown.split("\n") if re.match(r"(> ?)?\s{0,3}#+ ", line)]
    assert len(found) == headings, found
    columns = 0
    for line in markdown.split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not columns or not cells or cells == columns, line
        columns = cells


def test_samples() -> None:
    turn = [{"role": HOSTILE, "content": HOSTILE}]
    verdict = {"principle": HOSTILE, "order": HOSTILE, "p_chosen": 0.5, "valid": False, "reason": HOSTILE}
    step = {"principle": HOSTILE, "critique": HOSTILE, "revision": HOSTILE}
    row = {
        "id": HOSTILE,
        "prompt_id": HOSTILE,
        "finish": HOSTILE,
        "tokens": 3,
        "prompt": turn,
        "completion": turn,
        "chosen": turn,
        "rejected": turn,
        "p_chosen": 0.5,
        "verdicts": [verdict, verdict],
        "initial": HOSTILE,
        "rounds": [step],
    }
    for written in (completions_markdown, preferences_markdown, revisions_markdown):
        check(written([row]), headings=2)


def test_a_model_card() -> None:
    card = ModelCard(
        name=HOSTILE,
        kind="ppo",
        method="PPO",
        base=HOSTILE,
        revision=HOSTILE,
        constitution=(HOSTILE, HOSTILE),
        judge=HOSTILE,
        first=[HOSTILE],
        data={HOSTILE: HOSTILE},
        settings={HOSTILE: HOSTILE},
        results={HOSTILE: HOSTILE},
    )
    _, front, rest = card_markdown(card).split("---\n", 2)
    check(re.sub(r"```python.*?\n```\n", "", rest, flags=re.DOTALL), headings=6)
    assert front.count("\n") < 10
    assert '"a | b\\n# Heading' in rest


def test_a_difference_of_constitutions() -> None:
    mover = Mover(
        comparison_id=HOSTILE,
        prompt=HOSTILE,
        first=HOSTILE,
        second=HOSTILE,
        p_a=0.1,
        p_b=0.9,
        principle=HOSTILE,
    )
    influence = Influence(id=HOSTILE, side="a", change="added", own_flips=0.0, drives=0.1)
    found = Difference(
        a=HOSTILE,
        b=HOSTILE,
        judge=HOSTILE,
        protocol="pairwise",
        comparisons=1,
        both=1,
        flipped=Estimate(0.5, 0.1, 0.9),
        kappa=0.1,
        shift=0.0,
        correlation=None,
        changes=(Change(HOSTILE, "added"),),
        influences=(influence,),
        redundant=(),
        movers=(mover,),
    )
    check(difference_markdown(found), headings=5)


@given(st.text())
def test_a_cell_is_one_line_and_a_quotation_has_its_lines(text: str) -> None:
    assert "\n" not in named(text)
    assert "\n" not in code(text)
    assert table(("a", "b"), [(text, text)]).count("\n") == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", table(("a",), [(text,)]).split("\n")[2])) == 2
    assert all(line.startswith("> ") for line in quoted(text)[:-1].split("\n"))


def test_plain_names_stay_readable() -> None:
    for name in (
        "no-harm",
        "flip_rate",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "openai:gpt@1",
        "P(first) 0.52, 50 % (n = 3)",
    ):
        assert named(name) == name
    assert code("no_harm") == "`no_harm`"
    assert code("a`b") == r"a\`b"
    assert quoted("# a\n**b** `c`\n---") == "> \\# a\n> **b** `c`\n> \\---\n"


def test_a_sentence_keeps_our_backticks_and_no_others() -> None:
    assert sentence("`up` wins, 52 % [48, 56]") == "`up` wins, 52 % [48, 56]"
    assert sentence("`a`<b>` wins") == r"\`a\`\<b\>\` wins"
    check(sentence(f"`x` beats {HOSTILE}") + "\n", headings=0)
