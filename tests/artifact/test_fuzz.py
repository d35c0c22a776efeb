"""A part of `tests/fuzz_artifact.py`: no mutation of a pruned file gives another network or an unnamed error."""

import pytest

from tests.fuzz_artifact import fuzz, write_bytes, write_fields


@pytest.mark.parametrize("write", [write_bytes, write_fields], ids=["bytes", "fields"])
def test_every_mutation_is_refused_by_name_or_harmless(write):
    tally = fuzz(200, seed=11, write=write, limit_s=10.0)  # the script holds every one to a second, on an idle machine
    assert tally.faults == []
    assert tally.ends["refused"] > 40
