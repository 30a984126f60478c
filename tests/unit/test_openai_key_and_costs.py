"""Keys that are not shown, and limits that are kept."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rlaif.engines.api.api_key import ApiKey, read_api_key
from rlaif.engines.api.costs import CostLimitError, Ledger, Prices
from rlaif.engines.openai import ApiSettings, OpenAIEngine, open_openai
from rlaif.errors import ConfigError, ModelError

SECRET = "sk-verysecret-123456789"
LOCAL = frozenset({"localhost"})


def test_a_key_is_shown_nowhere() -> None:
    key = ApiKey(SECRET)
    assert SECRET not in f"{key!r} {key} {[key]}"
    assert bool(key)
    assert not ApiKey()
    assert repr(ApiKey()) == "ApiKey(none)"
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_redaction_takes_the_key_and_what_looks_like_one_out() -> None:
    key = ApiKey("plainkey")
    shown = key.redact(f"plainkey, Bearer abc.def, {SECRET}\n" + "x" * 500)
    assert "plainkey" not in shown
    assert "abc.def" not in shown
    assert "sk-" not in shown
    assert "\n" not in shown
    assert len(shown) <= 201


def test_a_key_comes_from_a_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\nsecond line\n", encoding="utf-8")
    assert read_api_key(hosts=LOCAL, file=file, environment={"RLAIF_API_KEY": "x"}).reveal() == "from-file"
    assert read_api_key(hosts=LOCAL, environment={"RLAIF_API_KEY": " from-env "}).reveal() == "from-env"
    assert read_api_key(hosts=LOCAL, variable="MINE", environment={"MINE": "mine"}).reveal() == "mine"


def test_the_vendors_key_goes_to_the_vendors_host_only() -> None:
    environment = {"OPENAI_API_KEY": SECRET}
    assert read_api_key(hosts=frozenset({"api.openai.com"}), environment=environment).reveal() == SECRET
    assert not read_api_key(hosts=LOCAL, environment=environment)
    assert not read_api_key(hosts=LOCAL | {"api.openai.com"}, environment=environment)


def test_a_key_that_cannot_be_used_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    cases = [
        {"file": tmp_path / "missing"},
        {"file": tmp_path / "empty"},
        {"file": tmp_path / "binary"},
        {"variable": "UNSET"},
        {"variable": "BAD"},
    ]
    for case in cases:
        with pytest.raises(ModelError) as caught:
            read_api_key(hosts=LOCAL, environment={"BAD": f"{SECRET} ü"}, **case)  # type: ignore[arg-type]
        assert SECRET not in str(caught.value)
        assert caught.value.remedy


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x/v1", "http://", "http://me:sk-secret99@h/v1", "https://h/v1?key=sk-secret99"],
)
def test_a_base_url_is_an_address_and_nothing_more(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine("toy", [url])
    assert "sk-secret99" not in str(caught.value)


def test_an_engine_needs_a_server_a_name_and_sane_settings() -> None:
    with pytest.raises(ConfigError, match="no base URL"):
        OpenAIEngine("toy", [])
    for name in ("openai", "openai:", "hf:toy"):
        with pytest.raises(ModelError, match="names no served model"):
            open_openai(name)
    with pytest.raises(ConfigError, match="votes"):
        ApiSettings(votes=0)
    with pytest.raises(ConfigError, match="retries"):
        ApiSettings(retries=-1)


def test_costs_add_up_by_the_servers_own_counts() -> None:
    ledger = Ledger(Prices(input=2.0, output=10.0), None)
    ledger.record({"prompt": 1000, "completion": 10, "cached": 600}, sent=4000, received=40)
    assert ledger.usage.cost == pytest.approx((1000 * 2 + 10 * 10) / 1e6)
    assert ledger.usage.as_dict()["cached_tokens"] == 600
    assert ledger.usage.unreported == 0


def test_an_answer_without_counts_is_guessed_from_its_length() -> None:
    ledger = Ledger(Prices(), None)
    ledger.record({}, sent=300, received=30)
    assert (ledger.usage.prompt_tokens, ledger.usage.completion_tokens, ledger.usage.unreported) == (
        100,
        10,
        1,
    )


def test_requests_are_admitted_while_their_worst_cost_fits() -> None:
    ledger = Ledger(Prices(input=1.0, output=1.0), 0.001)
    first = ledger.reserve(1500, 100)
    assert first == pytest.approx(600e-6)
    with pytest.raises(CostLimitError) as caught:
        ledger.reserve(1500, 100)
    assert "--max-cost" in caught.value.remedy
    ledger.release(first)
    ledger.record({"prompt": 300, "completion": 1}, sent=1500, received=1)
    ledger.reserve(1500, 100)


@pytest.mark.parametrize(("prices", "limit"), [(Prices(), 1.0), (Prices(1.0, 1.0), 0.0)])
def test_a_limit_needs_prices(prices: Prices, limit: float) -> None:
    with pytest.raises(ConfigError, match="max_cost"):
        Ledger(prices, limit)
