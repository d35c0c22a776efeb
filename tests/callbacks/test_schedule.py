"""Schedules: how much is pruned when, and which ones are refused."""

from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser

from mlprank.callbacks import Cubic, Linear, PruningCallback, register_schedule
from mlprank.callbacks.schedule import SCHEDULES, get_schedule, resolve_schedule
from tests.callbacks.projects import Fixed, Project, pruned_rows, trainer_for


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
    assert get_schedule(Cubic(1, 4, 0.2, 2).plain(), finetune_epochs=None) == Cubic(1, 4, 0.2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(5, 3), "ends at end_epoch=3 before it starts at start_epoch=5"),
        (lambda: PruningCallback(0.3, schedule=Linear(0, 3, initial=0.5)), "goes down from initial=0.5 to amount=0.3"),
        (
            lambda: PruningCallback({"a": 0.6, "b": 0.4}, schedule=Linear(initial=0.5)),
            "goes down from initial=0.5 to amount=0.4",
        ),
        (lambda: Linear(0, 3, initial=1.0), r"schedule: initial=1.0 is not in \[0, 1\)"),
        (lambda: Linear(0, 3, initial=float("nan")), r"initial=nan is not in \[0, 1\)"),
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


@dataclass(frozen=True)
class Square:
    """Somebody else's schedule: it shares no class with ours."""

    power: int = 2
    every: int = 1

    def share(self, progress: float) -> float:
        return progress**self.power


@pytest.fixture
def registered():
    register_schedule("square", Square)
    yield
    del SCHEDULES["square"]


def test_any_object_with_a_share_is_a_schedule(registered):
    for given in (
        Square(3),
        {"class_path": f"{__name__}.Square", "init_args": {"power": 3}},
        {"name": f"{__name__}.Square", "power": 3},
        {"name": "square", "power": 3},
    ):
        schedule = resolve_schedule(get_schedule(given, finetune_epochs=None), finetune_epochs=2, max_epochs=6)
        assert (schedule.start_epoch, schedule.end_epoch) == (1, 4)
        assert amounts(schedule) == pytest.approx({1: 0.0, 2: 0.6 / 27, 3: 0.6 * 8 / 27, 4: 0.6})
        assert schedule.plain()["power"] == 3
    assert get_schedule("square", finetune_epochs=None).share(0.5) == 0.25


def test_a_foreign_schedule_may_bring_epochs_of_its_own():
    assert get_schedule(Square(every=3), finetune_epochs=None).every == 3


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_named(share):
    class Wrong:
        def share(self, progress):
            return share

    schedule = resolve_schedule(get_schedule(Wrong(), finetune_epochs=None), finetune_epochs=1, max_epochs=6)
    with pytest.raises(ValueError, match=r"Wrong.share\(0\.\d+\) is .*; it must be in \[0, 1\]"):
        schedule.at(2, 0.5)


def test_a_foreign_schedule_is_named_in_yaml_and_prunes_and_resumes(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PruningCallback, "pruning")
    text = (
        f"pruning:\n  schedule:\n    class_path: {__name__}.Square\n    init_args: {{power: 3}}\n  finetune_epochs: 1\n"
    )

    def fit(epochs, path=None):
        callback = parser.instantiate_classes(parser.parse_string(text)).pruning
        module = Project()
        trainer = trainer_for(tmp_path, callback, max_epochs=4, limit_train_batches=3, max_steps=epochs * 3)
        trainer.fit(module, datamodule=Fixed(), ckpt_path=path)
        return module

    fit(2)
    (path,) = (tmp_path / "checkpoints").glob("*.ckpt")
    module = fit(4, path)
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
