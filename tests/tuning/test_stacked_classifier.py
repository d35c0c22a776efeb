"""Trials trained as one stacked model in a Trainer end as they do by themselves, whatever happens to the others."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from mlprank.datamodules import DigitsDataModule
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.stack import StackedClassifier, StackedDataModule

SEEDS = (0, 0, 3)
OPTIMIZERS = (
    partial(Adam, lr=1e-3, weight_decay=1e-5),
    partial(Adam, lr=1e-2, weight_decay=1e-3),
    partial(Adam, lr=3e-3),
)


def classifier(optimizer, seed, *, dropout=0.0, **options):
    torch.manual_seed(seed)
    return ImageClassifier(MLP(64, [24, 16], 10, dropout=dropout), optimizer=optimizer, **options)


def trainer(epochs=2, **options):
    defaults = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**defaults | options)


def train_stacked(classifiers, seeds=SEEDS, *, data=None, **options):
    module = StackedClassifier(classifiers, in_shape=(1, 8, 8))
    trainer(**options).fit(module, StackedDataModule(DigitsDataModule(**(data or {})), seeds))
    return module


class Epochs(Logger):
    """Remembers what was logged, an epoch a row."""

    name, version = "epochs", 0

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(metrics["epoch"], {}).update(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def train_alone(module, seed, *, data=None, **options):
    epochs = Epochs()
    trainer(**options, logger=epochs).fit(module, DigitsDataModule(seed=seed, **(data or {})))
    return list(epochs.rows.values())


def difference(state, network):
    return max((state[name] - value).abs().max().item() for name, value in network.state_dict().items())


@pytest.mark.parametrize("seeds", [(0, 0, 0), SEEDS])
def test_trials_with_equal_and_with_own_shuffles_equal_training_alone(seeds):
    schedule = partial(StepLR, step_size=1, gamma=0.3)
    settings = [
        {"optimizer": optimizer, "seed": seed, "lr_scheduler": schedule, "label_smoothing": smoothing}
        for optimizer, seed, smoothing in zip(OPTIMIZERS, seeds, (0.0, 0.1, 0.2), strict=True)
    ]
    run = {"epochs": 3, "precision": "64-true", "gradient_clip_val": 0.4}
    stacked = train_stacked([classifier(**setting) for setting in settings], seeds, **run)
    for k, setting in enumerate(settings):
        alone = classifier(**setting)
        epochs = train_alone(alone, seeds[k], **run)
        assert difference(stacked.stack.unstack(k), alone.model) < 1e-9
        for ours, theirs in zip(stacked.history[k], epochs, strict=True):
            assert ours["val_top1"] == pytest.approx(theirs["val_top1"], abs=1e-6)
            assert ours["val_top5"] == pytest.approx(theirs["val_top5"], abs=1e-6)
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5)
            assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_one_trial_does_not_touch_the_others(algorithm):
    run = {"epochs": 1, "precision": "64-true", "gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    optimizers = partial(SGD, lr=1e30), partial(SGD, lr=0.1)
    stacked = train_stacked([classifier(optimizer, 0) for optimizer in optimizers], (0, 0), **run)
    alone = classifier(optimizers[1], 0)
    train_alone(alone, 0, **run)
    assert difference(stacked.stack.unstack(1), alone.model) < 1e-9


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.05, momentum=0.9, nesterov=True), partial(AdamW, lr=1e-3)])
def test_accumulated_batches_equal_training_alone(optimizer):
    run = {"epochs": 1, "precision": "64-true", "accumulate_grad_batches": 3}
    stacked = train_stacked([classifier(optimizer, 1), classifier(optimizer, 2)], (0, 0), **run)
    alone = classifier(optimizer, 2)
    train_alone(alone, 0, **run)
    assert difference(stacked.stack.unstack(1), alone.model) < 1e-9


def test_a_plateau_schedule_watches_its_own_trial():
    schedule = partial(ReduceLROnPlateau, patience=0, factor=0.5, eps=0.0)
    optimizers = [partial(SGD, lr=rate) for rate in (1e-12, 0.1)]
    stacked = train_stacked([classifier(o, 0, lr_scheduler=schedule) for o in optimizers], (0, 0), epochs=3)
    assert [epoch["lr"] for epoch in stacked.history[0]] == [1e-12, 1e-12, 5e-13]
    assert [epoch["lr"] for epoch in stacked.history[1]] == [0.1, 0.1, 0.1]


def test_frozen_parameters_stay_as_they_are():
    trials = [classifier(OPTIMIZERS[0], seed) for seed in range(2)]
    for trial in trials:
        trial.model.fc1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in trials[1].model.state_dict().items()}
    stacked = train_stacked(trials, (0, 0), epochs=1)
    after = stacked.stack.unstack(1)
    assert {name for name, value in before.items() if torch.equal(after[name], value)} == {"fc1.weight"}


def diverging(k):
    return partial(SGD, lr=1e30 if k == 1 else 0.02)


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)])
def test_a_diverged_trial_leaves_the_others_the_same_to_the_bit(seeds):
    with_it = train_stacked([classifier(diverging(k), k) for k in range(3)], seeds, epochs=3)
    kept = (0, 2)
    without = train_stacked([classifier(diverging(k), k) for k in kept], [seeds[k] for k in kept], epochs=3)
    assert with_it.diverged == [1]
    for place, trial in enumerate(kept):
        ours, theirs = with_it.stack.unstack(trial), without.stack.unstack(place)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert with_it.history[trial] == without.history[place]
        best = without.best[place]
        assert all(torch.equal(with_it.best[trial][name], value) for name, value in best.items())
    lost = with_it.history[1]
    assert len(lost) == 3
    assert math.isnan(lost[0]["train_loss"])
    assert all(math.isnan(value) for value in lost[2].values())


def test_training_stops_when_every_trial_diverged():
    stacked = train_stacked([classifier(diverging(1), k) for k in range(2)], (0, 0), epochs=5)
    assert stacked.diverged == [0, 1]
    assert stacked.current_epoch < 3


def test_the_best_epoch_of_every_trial_is_kept():
    optimizers = [partial(SGD, lr=rate) for rate in (0.1, 2.0)]
    stacked = train_stacked([classifier(optimizer, 0) for optimizer in optimizers], (0, 0), epochs=5)
    for k, history in enumerate(stacked.history):
        accuracies = [epoch["val_top1"] for epoch in history]
        alone = classifier(optimizers[k], 0)
        alone.model.load_state_dict(stacked.best[k])
        data = DigitsDataModule()
        correct = sum((alone(x).argmax(1) == y).sum().item() for x, y in data.val_dataloader())
        assert correct / 288 == pytest.approx(max(accuracies))


def test_a_resumed_stack_ends_like_an_uninterrupted_one_to_the_bit(tmp_path):
    schedule = partial(StepLR, step_size=1, gamma=0.5)

    def trials():
        optimizers = [OPTIMIZERS[0], partial(Adam, lr=1e30), OPTIMIZERS[1]]
        return [classifier(o, k, lr_scheduler=schedule, dropout=0.2) for k, o in enumerate(optimizers)]

    checkpoint = ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    train_stacked(trials(), (0, 1, 2), epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    resumed, data = StackedClassifier(trials(), in_shape=(1, 8, 8)), StackedDataModule(DigitsDataModule(), (0, 1, 2))
    trainer(epochs=4).fit(resumed, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    whole = train_stacked(trials(), (0, 1, 2), epochs=4)
    assert resumed.diverged == whole.diverged == [1]
    assert [h for k, h in enumerate(resumed.history) if k != 1] == [h for k, h in enumerate(whole.history) if k != 1]
    for name in whole.stack.network.state_dict():
        assert torch.equal(resumed.stack.tensors[name][[0, 2]], whole.stack.tensors[name][[0, 2]])
        assert torch.equal(resumed.best[2][name], whole.best[2][name])


@pytest.mark.parametrize(
    "data",
    [
        {"train_transforms": lambda images: images.roll(int(torch.randint(3, ())), -1)},
        {"random_crop": 1, "random_erasing": 0.5, "mixup_alpha": 0.4},
    ],
)
def test_augmentation_of_a_trial_depends_on_its_own_seed(data):
    run = {"epochs": 2, "precision": "64-true"}
    stacked = train_stacked([classifier(OPTIMIZERS[0], 0) for _ in range(2)], (4, 5), data=data, **run)
    alone = classifier(OPTIMIZERS[0], 0)
    train_alone(alone, 5, data=data, **run)
    assert difference(stacked.stack.unstack(1), alone.model) < 1e-9
