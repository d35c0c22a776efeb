"""Errors in one line: the nearest word, and the first line of somebody else's message."""

from mlprank.utils.errors import did_you_mean, first_line


def test_the_nearest_word_is_named_whatever_its_case_and_none_where_nothing_is_near():
    assert did_you_mean("fitt", ["fit", "test"]) == "; did you mean 'fit'?"
    assert did_you_mean("NORM", ["norm", "wanda"]) == "; did you mean 'norm'?"
    assert did_you_mean("xyzzy", ["fit", "test"]) == ""


def test_the_first_line_of_an_error_goes_on_after_a_colon_and_is_never_empty():
    assert first_line(ValueError("sizes differ.\nsee above")) == "sizes differ"
    error = RuntimeError("Error(s) in loading:\n\tMissing key(s): 'a'. ")
    assert first_line(error) == "Error(s) in loading: Missing key(s): 'a'"
    assert first_line(KeyError()) == "KeyError"
