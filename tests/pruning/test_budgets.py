"""Budgets as people state them."""

from __future__ import annotations

import pytest

from mlprank.pruning.front import Budgets, format_count


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("max_bytes", "1MB", 1e6),
        ("max_bytes", "1.5 kB", 1500.0),
        ("max_bytes", "1MiB", 2.0**20),
        ("max_bytes", 250_000, 250_000.0),
        ("max_bytes", 0.3, 300.0),
        ("max_bytes", "0.3", 300.0),
        ("max_params", 50_000, 50_000.0),
        ("max_params", "50k", 50_000.0),
        ("max_params", 1, 1000.0),
        ("max_flops", "2.5M", 2.5e6),
        ("max_flops", "1e6", 1e6),
        ("max_latency", "2ms", 2e-3),
        ("max_latency", "0.5", 500.0),
        ("max_latency", "300us", 3e-4),
    ],
)
def test_numbers_up_to_one_are_shares_and_others_absolute(name, given, expected):
    assert Budgets(**{name: given}).limit(name, dense=1000.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no budget; give at least one of max_drop, max_bytes"),
        ({"max_drop": float("nan")}, "max_drop=nan must be a number of at least 0"),
        ({"max_drop": -1.0}, r"max_drop=-1\.0 must be a number of at least 0"),
        ({"max_drop": "1"}, "max_drop='1' must be a number"),
        ({"max_bytes": float("nan")}, "max_bytes=nan must be a positive number, such as 1MB"),
        ({"max_bytes": "1XB"}, r'max_bytes=\'1XB\': "XB" is not a unit of it; give one of B, kB'),
        ({"max_params": "5MB"}, '"MB" is not a unit of it; give one of k, M, G'),
        ({"max_flops": 0}, "max_flops=0 must be a positive number"),
        ({"max_flops": "-3k"}, "max_flops='-3k' must be a positive number"),
        ({"max_params": "few"}, "max_params='few' must be a positive number, such as 50000 or 50k"),
        ({"max_params": True}, "max_params=True must be a positive number"),
        ({"max_latency": 2}, "max_latency=2: it has no unit; give one of s, ms, us"),
        ({"max_latency": "inf"}, "max_latency='inf' must be a positive number"),
    ],
)
def test_what_is_no_budget_is_refused_with_a_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        Budgets(**given)


def test_budgets_and_counts_read_as_they_were_typed():
    assert str(Budgets(max_drop=0.5, max_bytes="1MB")) == "max_drop=0.5, max_bytes=1MB"
    assert format_count("max_bytes", 45_600) == "45.6 kB"
    assert format_count("max_flops", 1_337_344) == "1,337,344"
    assert format_count("max_latency", 0.00213) == "2.13 ms"
