"""Templates that nobody vouches for: each ends in one message, soon, and within bounded memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from rlaif.errors import ConfigError
from rlaif.prompts import PromptLibrary
from rlaif.types import Message, Prompt

SECONDS = 5.0
"""Of processor time; each takes a fraction of one on an idle machine."""
MEMORY = 1 << 30
BOUNDED = {
    "loops that print "
    "nothing": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "loops that print": "{% for a in range(90000) %}{% for b in range(90000) %}{{ message }}{% endfor %}{% "
    "endfor %}",
    "loops of long literals": "{% set x %}{% for a in range(90000) %}"
    + "long " * 1000
    + "{% endfor %}{% endset %}",
    "a loop that calls itself": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a range that is endless": "{% for a in range(10 ** 12) %}{% endfor %}",
    "a text times a number": "{{ 'a' * 10 ** 10 }}",
    "a number times a text": "{{ 10 ** 10 * 'a' }}",
    "a list times a number": "{{ [message] * 10 ** 9 }}",
    "lists of lists": "{{ (([message] * 9000) * 9000)|length }}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "powers one by one": "{% set n = namespace(x=9) %}{% for a in range(90) %}{% set n.x = n.x ** 9 %}{% "
    "endfor %}",
    "products one by "
    "one": "{% set n = namespace(x=9) %}{% for a in range(900) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% "
    "endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% "
    "endfor %}",
    "doubling by a block": (
        "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset "
        "%}{% endfor %}"
    ),
    "doubling by join": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = [n.x, n.x]|join "
    "%}{% endfor %}",
    "doubling by a list": "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] "
    "%}{% endfor %}{{ n.x }}",
    "doubling by replace": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = "
    "n.x.replace('a', n.x) %}{% endfor %}",
    "doubling by a filter": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = "
    "n.x|replace('a', n.x) %}{% endfor %}",
    "join of a method": "{{ ('x' * 9000000).join(range(90000)|map('string')|list) }}",
    "a width": "{{ 'a'.ljust(10 ** 10) }}",
    "a width of a filter": "{{ 'a'|center(10 ** 10) }}",
    "a width of a format": "{{ '%10000000000d' % 1 }}",
    "a width by a star": "{{ '%*d' % (10000000000, 1) }}",
    "a width of str.format": "{{ '{:>10000000000}'.format(1) }}",
    "a width inside str.format": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "a width of the filter format": "{{ '%10000000000d'|format(1) }}",
    "an indentation": "{{ ('a\\n' * 90000)|indent(90000) }}",
    "a batch": "{{ [1]|batch(10 ** 9, 'x')|list }}",
    "lipsum": "{{ lipsum(n=10 ** 9) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a block that prints itself": "{{ self.user() }}",
    "a file that includes "
    "itself": "{% include 'policy.j2' %}{% for a in range(9) %}{% include 'policy.j2' %}{% endfor %}",
    "a class": "{{ message.__class__.__mro__[1].__subclasses__() }}",
    "a class by a filter": "{{ (message|attr('__class__')).__mro__ }}",
    "globals of a function": "{{ quote.__globals__ }}",
    "a class by a format": "{{ '{0.__class__.__mro__}'.format(message).__x__ }}",
    "code": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "a file above": "{% include '../../etc/passwd' %}",
    "a file by its path": "{% include '/etc/passwd' %}",
    "a device": "{% include '/dev/zero' %}",
    "a nul": "{% include 'a\\0b' %}",
    "a name of thousands": "{% include '" + "a" * 5000 + "' %}",
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "blocks": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "digits": "{{ " + "9" * 9000 + " }}",
    "a zero": "{{ 1 / 0 }}",
    "nothing of that name": "{{ nosuch }}",
    "an unknown tag": "{% do x %}",
    "an unknown filter": "{{ message|nosuch }}",
    "an open tag": "{% if message %}",
    "half a character": "{{ '\\ud800' }}{{ nosuch }}",
}


def render(folder: Path) -> None:
    prompt = Prompt(id="p", messages=(Message("user", "hello " * 20),), context=("a document",))
    PromptLibrary(folder=folder).policy(prompt)


@pytest.mark.parametrize("template", BOUNDED.values(), ids=BOUNDED)
def test_it_ends_in_one_message_soon(template: str, tmp_path: Path) -> None:
    (tmp_path / "policy.j2").write_text("{% block user %}" + template + "{% endblock %}", encoding="utf-8")
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as raised:
        render(tmp_path)
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
    assert len(str(raised.value)) < 1000
    assert "policy.j2" in str(raised.value) or "template" in str(raised.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "loop", "folder of one", "bytes"])
def test_what_stands_in_the_place_of_a_template(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "policy.j2"
    match kind:
        case "fifo":
            os.mkfifo(place)
        case "device":
            place.symlink_to("/dev/zero")
        case "loop":
            place.symlink_to(place)
        case "folder of one":
            place.symlink_to(tmp_path / "nowhere")
        case _:
            place.write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(ConfigError, match=r"policy\.j2"):
        render(tmp_path)


def test_templates_of_the_usual_kind_still_work(tmp_path: Path) -> None:
    template = (
        "{% set n = namespace(x=0) %}{% for d in context %}{% set n.x = n.x + loop.index * 2 %}{{ loop.last "
        "}}"
        "{{ d ~ '!' ~ n.x }}{% endfor %}{{ '%s-%5.2f' % ('a', 1) }}{{ '-' * 3 }}{{ [1, 2]|join(', ') }}{{ "
        "'a'|center(5)|trim }}"
        "{% for k, v in {'a': 1}|dictsort %}{{ k }}{{ v }}{% endfor %}{{ 2 ** 10 }}{{ '{:>3}'.format('b') }}"
        "{{ 'a'.replace('a', 'c') }}"
        "{% macro m(t) %}<{{ t }}>{% endmacro %}{{ m('x') }}{% for i in range(3) if i %}{{ i }}{% else "
        "%}none{% endfor %}"
    )
    (tmp_path / "policy.j2").write_text("{% block user %}" + template + "{% endblock %}", encoding="utf-8")
    prompt = Prompt(id="p", messages=(Message("user", "hello"),), context=("one", "two"))
    (message,) = PromptLibrary(folder=tmp_path).policy(prompt)
    assert message.content == "Falseone!2Truetwo!6a- 1.00---1, 2aa11024  bc<x>12"
