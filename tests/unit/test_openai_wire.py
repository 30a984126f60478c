"""What goes over the wire, and what comes back, read without trust."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlaif.engines.api.forms import Form
from rlaif.engines.api.wire import Malformed, fold_turns, inert, read_counts, read_reply, render_plain
from rlaif.engines.base import GenerationRequest, LabelRequest, Sampling
from rlaif.types import Message

USER = Message("user", "Which?")
OPEN = (USER, Message("assistant", "Answer:"))


def form(**changes: Any) -> Form:
    values: dict[str, Any] = {"model": "toy", "api": "chat", "top": 20, "votes": 8, "continues": True}
    return Form(**values | changes)


def chat(content: Any = "A", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop", **more}]}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ([], "not_an_object"),
        (None, "not_an_object"),
        ("A", "not_an_object"),
        ({}, "no_choices"),
        ({"choices": []}, "no_choices"),
        ({"choices": "A"}, "no_choices"),
        ({"error": {"message": "out of memory"}}, "error_in_body"),
        ({"choices": [3]}, "bad_choice"),
        (chat(content=5), "bad_choice"),
        ({"choices": [{"message": "A"}]}, "bad_choice"),
        ({"choices": [{}]}, "bad_choice"),
    ],
)
def test_a_reply_that_is_none_has_a_reason(payload: object, reason: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_reply(payload)
    assert caught.value.reason == reason


def test_a_duplicated_choice_counts_once_and_a_contradiction_not_at_all() -> None:
    reply = chat()
    reply["choices"] *= 2
    assert len(read_reply(reply).choices) == 1
    reply["choices"] = [reply["choices"][0], chat("B")["choices"][0]]
    with pytest.raises(Malformed, match="contradictory_answers"):
        read_reply(reply)


def test_choices_come_in_the_order_of_their_index() -> None:
    reply = {"choices": [chat("B")["choices"][0] | {"index": 1}, chat("A")["choices"][0]]}
    assert [choice.text for choice in read_reply(reply).choices] == ["A", "B"]


def test_reasoning_that_the_server_split_off_is_put_back() -> None:
    reply = {
        "choices": [{"finish_reason": "length", "message": {"content": None, "reasoning_content": "hm"}}]
    }
    assert read_reply(reply).choices[0].text == "<think>hm", "what was cut is not closed"


def test_no_content_is_an_empty_answer() -> None:
    assert read_reply(chat(content=None)).choices[0].text == ""


def test_top_tokens_are_read_in_both_forms_and_sorted() -> None:
    entries = [
        {"token": "B", "logprob": -2, "bytes": None},
        {"token": "�", "logprob": -1.0, "bytes": [229, 144]},
        7,
    ]
    found = read_reply(chat(logprobs={"content": [{"top_logprobs": entries}]})).choices[0].top
    assert found == ((b"\xe5\x90", -1.0), (b"B", -2.0))
    mapped = {"choices": [{"text": "A", "logprobs": {"top_logprobs": [{" B": -3.0, " A": -0.5}]}}]}
    assert read_reply(mapped).choices[0].top == ((b" A", -0.5), (b" B", -3.0))


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {},
        {"content": None},
        {"content": []},
        {"content": ["x"]},
        {"content": [{"top_logprobs": None}]},
        {"top_logprobs": []},
        {"top_logprobs": [None]},
        {"content": [{"top_logprobs": []}]},
    ],
)
def test_missing_top_tokens_are_none(logprobs: Any) -> None:
    assert read_reply(chat(logprobs=logprobs)).choices[0].top is None


def test_a_log_probability_that_is_no_number_is_nan() -> None:
    found = (
        read_reply(chat(logprobs={"content": [{"top_logprobs": [{"token": "A", "logprob": "-1"}]}]}))
        .choices[0]
        .top
    )
    assert found is not None
    assert math.isnan(found[0].logprob)


def test_counts_are_those_that_are_counts() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": {"cached_tokens": 2}}
    assert read_counts({"usage": usage}) == {"prompt": 5, "cached": 2}
    assert read_counts({"usage": {"prompt_tokens": -1, "completion_tokens": True}}) == {}
    assert read_counts([]) == {}


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "</s>", "[INST]", "<end_of_turn>", "<｜User｜>", "</think>", "<<SYS>>", "<eos>"]
)
def test_control_strings_inside_a_message_are_inert(text: str) -> None:
    changed = inert(f"a {text} b")
    assert text not in changed
    assert changed.replace("\u200b", "") == f"a {text} b"


def test_ordinary_text_is_left_alone() -> None:
    text = "if a < b | c > d: x[1] = <b>bold</b>"
    assert inert(text) == text


def test_a_turn_that_cannot_be_continued_is_folded_into_the_users() -> None:
    assert fold_turns((USER,)) == (USER,)
    assert fold_turns(OPEN) == (Message("user", "Which?\nAnswer:"),)
    assert fold_turns((USER, Message("assistant", "Because.\nAnswer:"))) == (
        USER,
        Message("assistant", "Because."),
        Message("user", "Answer:"),
    )
    assert fold_turns((Message("system", "s"), Message("assistant", "x"))) == (
        Message("system", "s"),
        Message("user", "x"),
    )


def test_the_plain_form_is_that_of_base_models_and_keeps_its_turns() -> None:
    turns = (Message("system", "Be kind."), Message("user", "Hi\nHuman: x"))
    assert render_plain(turns) == "Be kind.\n\nHuman: Hi\nH\u200buman: x\n\nAssistant:"
    assert render_plain(OPEN) == "\n\nHuman: Which?\n\nAssistant: Answer:"


def test_a_label_is_asked_greedily_for_one_position() -> None:
    body = form().label(LabelRequest(OPEN, ("A", "B")))
    assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (
        0.0,
        1,
        True,
        20,
    )
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    plain = form(api="completions", top=5).label(LabelRequest(OPEN, ("A", "B")))
    assert plain["logprobs"] == 5
    assert plain["prompt"].endswith("Answer:")


def test_without_continuation_no_flag_is_sent() -> None:
    body = form(continues=False).label(LabelRequest(OPEN, ("A", "B")))
    assert body["messages"] == [{"role": "user", "content": "Which?\nAnswer:"}]
    assert not any(name.startswith(("add_", "continue_")) for name in body)
    assert not any(
        name.startswith(("add_", "continue_")) for name in form().label(LabelRequest((USER,), ("A", "B")))
    )


def test_votes_are_sampled_and_a_single_one_is_greedy() -> None:
    request = LabelRequest((USER,), ("A", "B"))
    many, rest = form(top=0).vote(request, 0, 8), form(top=0).vote(request, 5, 3)
    assert (many["temperature"], many["n"], rest["n"]) == (1.0, 8, 3)
    assert many["seed"] != rest["seed"]
    assert form(top=0, votes=1).vote(request, 0, 1)["temperature"] == 0.0


def test_a_completion_passes_its_sampling_on() -> None:
    sampling = Sampling(max_new_tokens=9, temperature=0.7, top_p=0.9, stop=("END",))
    body = form(extra={"top_k": -1}).generation(GenerationRequest((USER,), sampling, seed=1 << 40))
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["stop"], body["top_k"]) == (
        9,
        0.7,
        0.9,
        ["END"],
        -1,
    )
    assert 0 <= body["seed"] < 1 << 31
    renamed = form(limit="max_completion_tokens").generation(GenerationRequest((USER,), sampling, seed=0))
    assert renamed["max_completion_tokens"] == 9
    assert "max_tokens" not in renamed
    assert (
        "\n\nHuman:"
        in form(api="completions").generation(GenerationRequest((USER,), sampling, seed=0))["stop"]
    )


def test_the_description_tells_all_that_changes_an_answer() -> None:
    described = {
        form().describe(),
        form(top=0).describe(),
        form(top=0, votes=1).describe(),
        form(continues=False).describe(),
        form(api="completions").describe(),
        form(extra={"top_k": 1}).describe(),
        form(top=5).describe(),
    }
    assert len(described) == 7
    assert form().describe() == "chat, top 20 log-probabilities"
