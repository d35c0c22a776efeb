"""Calibration data of every form become batches that can be read several times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlprank.calibration.data import DEFAULT_NUM_SAMPLES, Calibration

CPU = torch.device("cpu")


def inputs(num_samples: int = 10) -> Tensor:
    return torch.arange(num_samples * 3, dtype=torch.float32).view(num_samples, 3)


def read(source: Any, **arguments: Any) -> Tensor:
    calibration = Calibration(source, device=CPU, **arguments)
    first, second = (torch.cat([batch.args[0] for batch in calibration]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(calibration.example.args[0], next(iter(calibration)).args[0])
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
        (
            5,
            TypeError,
            "calibration: int is not a batch, an iterable of batches, a DataLoader or a LightningDataModule",
        ),
        (
            [{"image": "path"}],
            TypeError,
            r"a batch is a dict that gives the call \(image='path'\), which holds no tensor",
        ),
        ([("image", 3)], TypeError, r"a batch is a tuple that gives the call \('image'\), which holds no tensor"),
        ([torch.tensor(3.0)], ValueError, r"a batch has no dimensions; give inputs of shape \(N, \.\.\.\)"),
    ],
)
def test_what_is_no_batch_is_named(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Calibration(source, device=CPU)


def test_batches_of_another_dtype_or_number_of_dimensions_than_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \(3, 1\) and dtype torch.float32, the first one of \(3,\)"):
        read([inputs(), inputs()[:, :, None]])
    with pytest.raises(ValueError, match=r"dtype torch.float64, the first one of \(3,\) and torch.float32"):
        read([inputs(), inputs().double()])


def calls(source: Any, **arguments: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [(batch.args, dict(batch.kwargs)) for batch in Calibration(source, device=CPU, **arguments)]


class Two(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return ids * mask


class Optional(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return ids if mask is None else ids * mask


def test_a_dict_is_keyword_arguments_and_numpy_arrays_are_tensors() -> None:
    x = inputs(4)
    ((args, kwargs),) = calls([{"ids": x.numpy(), "mask": x}], model=Two())
    assert args == ()
    assert torch.equal(kwargs["ids"], x)
    assert torch.equal(kwargs["mask"], x)
    assert torch.equal(read(x.numpy()), x)
    with pytest.raises(
        ValueError, match=r"a batch has the keys ids, label, the network takes \(ids: .*say by inputs= how"
    ):
        calls([{"ids": x, "label": x}], model=Two())


def test_every_input_of_a_tuple_is_passed_and_labels_are_not() -> None:
    x, labels = inputs(4), torch.zeros(4)
    ((args, _),) = calls([(x, x + 1, labels)], model=Two())
    assert len(args) == 2
    assert torch.equal(args[1], x + 1)
    ((args, _),) = calls([(x, labels)], model=Optional())
    assert len(args) == 1
    with pytest.raises(ValueError, match="whether the second one is an input is not clear; say by inputs="):
        calls([(x, x)], model=Optional())


def test_inputs_says_how_a_batch_becomes_a_call() -> None:
    x = inputs(4)
    given = [({"ids": x, "seen": x > 0}, torch.zeros(4))]
    ((args, kwargs),) = calls(given, inputs=lambda batch: ((batch[0]["ids"],), {"mask": batch[0]["seen"]}))
    assert torch.equal(args[0], x)
    assert kwargs["mask"].dtype == torch.bool
    ((args, kwargs),) = calls(given, inputs=lambda batch: batch[0]["ids"], num_samples=3)
    assert torch.equal(args[0], x[:3])
    assert not kwargs


def test_sizes_that_differ_between_batches_are_known() -> None:
    batches = [{"ids": torch.zeros(2, length), "mask": torch.zeros(2, length, 3)} for length in (5, 5, 7)]
    assert Calibration(batches, device=CPU).varying == {(0, 1), (1, 1)}
    assert Calibration(inputs(), device=CPU).varying == set()
