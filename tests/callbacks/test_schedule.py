"""Schedules: how much is pruned when, and which ones are refused."""

import pytest

from mlprank.callbacks import Cubic, Linear
from mlprank.callbacks.schedule import get_schedule, resolve_schedule


def amounts(schedule, target=0.6, epochs=12):
    reached = [schedule.at(epoch, target) for epoch in range(epochs)]
    return {epoch: amount for epoch, amount in enumerate(reached) if amount is not None}


def test_linear_reaches_the_target_in_equal_steps():
    assert amounts(Linear(2, 5)) == pytest.approx({2: 0.0, 3: 0.2, 4: 0.4, 5: 0.6})
    assert amounts(Linear(2, 5, initial=0.3)) == pytest.approx({2: 0.3, 3: 0.4, 4: 0.5, 5: 0.6})


def test_cubic_prunes_most_at_first():
    assert amounts(Cubic(0, 2)) == pytest.approx({0: 0.0, 1: 0.6 * 0.875, 2: 0.6})


def test_the_last_step_reaches_the_target_exactly_whatever_every_says():
    assert amounts(Linear(0, 7, every=3), target=0.1 + 0.2) == pytest.approx({0: 0.0, 3: 0.9 / 7, 6: 1.8 / 7, 7: 0.3})
    assert Cubic(0, 7, every=3).at(7, 0.1 + 0.2) == 0.1 + 0.2


def test_amounts_by_layer_grow_together():
    assert Linear(0, 2).at(1, {"a": 0.2, "b": 0.8}) == pytest.approx({"a": 0.1, "b": 0.4})


def test_a_schedule_of_one_epoch_prunes_once():
    assert amounts(Linear(3, 3)) == {3: 0.6}


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("finetune_epochs", [None, 0, 1])
def test_epochs_left_open_fit_into_training(epochs, finetune_epochs):
    schedule = resolve_schedule(Cubic(), finetune_epochs=finetune_epochs, max_epochs=epochs)
    assert 0 <= schedule.start_epoch <= schedule.end_epoch < epochs
    assert isinstance(schedule, Cubic)


def test_fine_tuning_takes_the_last_epochs():
    assert resolve_schedule(None, finetune_epochs=3, max_epochs=10) == Linear(7, 7)
    assert resolve_schedule(Linear(), finetune_epochs=4, max_epochs=10) == Linear(2, 6)
    assert resolve_schedule(Linear(1), finetune_epochs=None, max_epochs=8) == Linear(1, 6)
    assert resolve_schedule(None, finetune_epochs=4, max_epochs=4) == Linear(0, 0)


@pytest.mark.parametrize("finetune_epochs", [None, 0])
def test_without_schedule_and_fine_tuning_nothing_is_pruned_before_the_end(finetune_epochs):
    assert resolve_schedule(None, finetune_epochs=finetune_epochs, max_epochs=10) is None


def test_schedules_are_found_by_name_and_description():
    assert get_schedule("linear", finetune_epochs=None) == Linear()
    assert get_schedule({"name": "cubic", "end_epoch": 4}, finetune_epochs=None) == Cubic(end_epoch=4)
    described = {"class_path": "mlprank.callbacks.Cubic", "init_args": {"every": 2}}
    assert get_schedule(described, finetune_epochs=None) == Cubic(every=2)
    assert Cubic.from_plain(Cubic(1, 4, 0.2, 2).plain()) == Cubic(1, 4, 0.2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(5, 3), "ends at end_epoch=3 before it starts at start_epoch=5"),
        (lambda: Linear(0, 3, initial=0.5).check_target(0.3), "goes down from initial=0.5 to amount=0.3"),
        (lambda: Linear(initial=0.5).check_target({"a": 0.6, "b": 0.4}), "goes down from initial=0.5 to amount=0.4"),
        (lambda: Linear(0, 3, initial=1.0), r"schedule: initial: amount=1.0 is not in \[0, 1\)"),
        (lambda: Linear(0, 3, initial=float("nan")), r"initial: amount=nan is not in \[0, 1\)"),
        (lambda: Linear(-1, 3), "start_epoch=-1 must be a whole number of at least 0"),
        (lambda: Linear(0, 3, every=0), "every=0 must be a whole number of at least 1"),
        (lambda: Linear(0, 2.5), "end_epoch=2.5 must be a whole number"),
        (
            lambda: get_schedule({"name": "linear", "end": 3}, finetune_epochs=None),
            'schedule "linear": got an unexpected',
        ),
        (
            lambda: resolve_schedule(Linear(0, 9), finetune_epochs=None, max_epochs=5),
            r"end_epoch=9 is never reached by Trainer\(max_epochs=5\); at most 4",
        ),
        (
            lambda: resolve_schedule(Linear(0, 3), finetune_epochs=3, max_epochs=5),
            r"end_epoch=3 and finetune_epochs=3 do not add up to Trainer\(max_epochs=5\)",
        ),
        (
            lambda: resolve_schedule(None, finetune_epochs=6, max_epochs=5),
            r"finetune_epochs=6 is more than Trainer\(max_epochs=5\)",
        ),
        (lambda: resolve_schedule(Linear(), finetune_epochs=None, max_epochs=-1), r"without Trainer\(max_epochs=...\)"),
        (lambda: resolve_schedule(Linear(6), finetune_epochs=None, max_epochs=8), None),
        (
            lambda: resolve_schedule(Linear(7), finetune_epochs=None, max_epochs=8),
            "ends at end_epoch=6 before it starts",
        ),
    ],
)
def test_schedules_that_cannot_be_are_refused(make, message):
    if message is None:
        assert make() == Linear(6, 6)
        return
    with pytest.raises(ValueError, match=message):
        make()
