import pytest
import torch

from mlprank.methods import METHODS, Global, Local, get_method


def test_short_and_published_names_give_the_methods():
    assert list(METHODS) == ["local", "global", "adaptive"]
    assert get_method("local") == get_method("Local") == Local()
    assert get_method("global") == Global(normalise="width")


def test_the_published_global_does_not_normalise():
    assert get_method("Global") == Global(normalise="none")


def test_parameters_reach_the_method():
    assert get_method("global", normalise="none") == Global(normalise="none")
    assert get_method("Global", normalise="width") == Global(normalise="width")
    assert get_method(Global, normalise="none") == Global(normalise="none")


def test_an_instance_and_a_function_are_returned_as_they_are():
    method = Global(normalise="none")

    def keep_all(scores, amounts, *, min_neurons=1, round_to=1):
        return {name: torch.ones_like(values, dtype=torch.bool) for name, values in scores.items()}

    assert get_method(method) is method
    assert get_method(keep_all) is keep_all


def test_unknown_name_lists_all_and_the_nearest():
    with pytest.raises(
        ValueError, match=r'unknown method "gloabl"; did you mean .global..*: local, global, adaptive, Local, Global'
    ):
        get_method("gloabl")


def test_unknown_parameter_names_those_that_exist():
    with pytest.raises(ValueError, match=r'method "global": .*its parameters: normalise'):
        get_method("global", normalize="width")
    with pytest.raises(ValueError, match=r'method "Local": .*its parameters: none'):
        get_method("Local", normalise="width")


def test_parameters_beside_an_instance_are_an_error():
    with pytest.raises(ValueError, match=r"is an instance, so the parameters \['normalise'\] have no place"):
        get_method(Global(), normalise="none")


def test_something_else_than_a_method_is_an_error():
    with pytest.raises(TypeError, match="method=3 is not a name, a class or an instance of a method"):
        get_method(3)


def test_a_class_path_is_the_class_and_the_name_of_the_thesis_the_published_method():
    assert get_method({"class_path": "mlprank.methods.Global"}) == Global()
    assert get_method({"class_path": "Global", "init_args": {"normalise": "none"}}) == Global(normalise="none")
    assert get_method("Global") == Global(normalise="none")
    assert get_method({"name": "global", "normalise": "none"}) == Global(normalise="none")
