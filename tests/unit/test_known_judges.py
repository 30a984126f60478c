"""The judges that are named at the end of `rlaif label`: their sizes, and which one fits."""

from __future__ import annotations

from rlaif.models.known import KNOWN_JUDGES, largest_that_fits

GB = 10**9


def test_sizes_are_those_of_the_files_on_the_hub() -> None:
    # Qwen2.5-7B-Instruct: 15.2 GB of safetensors; its AWQ files 5.6 GB. 32B: 65.5 and 19.3 GB.
    by_name = {each.hub.rpartition("/")[2]: each for each in KNOWN_JUDGES}
    seven, large = by_name["Qwen2.5-7B-Instruct"], by_name["Qwen2.5-32B-Instruct"]
    assert abs(seven.bytes_16_bits / GB - 15.2) < 0.1
    assert abs(seven.bytes_4_bits / GB - 5.6) < 0.1
    assert abs(large.bytes_16_bits / GB - 65.5) < 1
    assert abs(large.bytes_4_bits / GB - 19.3) < 0.5


def test_the_largest_that_fits_and_is_larger_is_named() -> None:
    named = {free: largest_that_fits(free * GB) for free in (1, 4, 20, 40, 80, 200)}
    assert [each.hub.split("-")[1] if each else None for each in named.values()] == [
        None,
        "1.5B",
        "7B",
        "14B",
        "32B",
        "72B",
    ]
    assert [each.total for each in KNOWN_JUDGES] == sorted(each.total for each in KNOWN_JUDGES)
    assert largest_that_fits(20 * GB, above=8e9) is None
    assert all(each.layers < each.total for each in KNOWN_JUDGES)
