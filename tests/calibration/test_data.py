"""Calibration data of every form become batches that can be read several times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mlprank.calibration.data import DEFAULT_NUM_SAMPLES, Calibration

CPU = torch.device("cpu")


def inputs(num_samples: int = 10) -> Tensor:
    return torch.arange(num_samples * 3, dtype=torch.float32).view(num_samples, 3)


def read(source: Any, **arguments: Any) -> Tensor:
    calibration = Calibration(source, device=CPU, **arguments)
    first, second = torch.cat(list(calibration)), torch.cat(list(calibration))
    assert torch.equal(first, second)
    assert torch.equal(calibration.example, next(iter(calibration)))
    return first


def test_a_tensor_batches_pairs_loaders_and_generators_give_the_same_inputs() -> None:
    x, labels = inputs(), torch.zeros(10)

    def generator() -> Iterator[Tensor]:
        yield from x.split(4)

    sources = [
        x,
        list(x.split(4)),
        [(part, torch.zeros(len(part))) for part in x.split(3)],
        [[part, "label"] for part in x.split(3)],
        DataLoader(TensorDataset(x, labels), batch_size=4),
        generator(),
        [x[:0], x],
    ]
    for source in sources:
        assert torch.equal(read(source), x)


def test_no_more_samples_are_read_than_asked_for() -> None:
    for num_samples in (1, 4, 5, 10, 20):
        assert torch.equal(read(inputs().split(4), num_samples=num_samples), inputs()[:num_samples])


class DataModule:
    def __init__(self, *, own: bool) -> None:
        self.calls: list[str] = []
        if own:
            self.calibration_dataloader = lambda num_samples, seed: [(inputs(5), None)]

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> Any:
        return [(part, None) for part in inputs(2000).split(300)]


def test_a_datamodule_is_set_up_and_its_calibration_or_training_data_are_read() -> None:
    module = DataModule(own=True)
    assert torch.equal(read(module), inputs(5))
    assert module.calls == ["prepare_data", "fit"]
    assert torch.equal(read(DataModule(own=False)), inputs(2000)[:DEFAULT_NUM_SAMPLES])
    assert torch.equal(read(DataModule(own=False), num_samples=7), inputs(7))


@pytest.mark.parametrize("source", [[], inputs(0), [inputs(0)], iter([])])
def test_an_empty_set_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="calibration: the set is empty; give at least one sample"):
        Calibration(source, device=CPU)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (5, TypeError, "calibration: int is no batch, iterable of batches, DataLoader or LightningDataModule"),
        ([{"image": inputs()}], TypeError, "a batch is a dict of no tensor; give tensors, or tuples"),
        ([("image", 3)], TypeError, "a batch is a tuple of no tensor"),
        ([torch.tensor(3.0)], ValueError, r"a batch has no dimensions; give inputs of shape \(N, \.\.\.\)"),
    ],
)
def test_what_is_no_batch_is_named(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Calibration(source, device=CPU)


def test_batches_of_another_shape_or_dtype_than_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \(4,\) and dtype torch.float32, the first one of \(3,\)"):
        read([inputs(), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match=r"dtype torch.float64, the first one of \(3,\) and torch.float32"):
        read([inputs(), inputs().double()])
