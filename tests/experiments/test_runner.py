"""Cells run, are recorded, and give the numbers of `prune_mlp`."""

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mlprank import measures
from mlprank.costs.metrics import top_k_accuracy
from mlprank.experiments import runner
from mlprank.experiments.config import ExperimentConfig, read_config
from mlprank.experiments.records import (
    DENSE,
    CellParameters,
    CellRecord,
    RecordStore,
    read_records,
    read_scores,
)
from mlprank.experiments.runner import Workbench, accuracies, cells_of, find_networks, run_cells
from mlprank.grids.progress import Progress
from mlprank.measures import PUBLISHED_MEASURES, LayerRecord
from mlprank.models import SixLayerMLP, TwoLayerMLP
from mlprank.pruning.pipeline import Pruning
from mlprank.thesis import prune_mlp
from tests.experiments.trained import Foreign, save_published, write_digits_experiment, write_two_layer_mnist

NUM_IMAGES = 300


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def started(self, items: Sequence[CellParameters]) -> None:
        assert items

    def finished(self, item: CellParameters, result: CellRecord) -> None:
        self.keys.append(item.key)

    def failed(self, item: CellParameters, error: str) -> None:
        assert error
        self.keys.append(item.key)


def run(config: ExperimentConfig, out: Path) -> tuple[CellRecord, ...]:
    networks, _ = find_networks(config)
    with RecordStore(out) as store:
        heard = Heard()
        run_cells(config, networks, store, heard, cells_of(config, networks))
        assert set(heard.keys) <= {record.key for record in store.records}
    return read_records(out)


def small(tmp_path: Path, **changes: object) -> ExperimentConfig:
    return ExperimentConfig(**read_config(write_digits_experiment(tmp_path, **changes)))


@pytest.mark.parametrize("protect_output", [True, False])
def test_numbers_are_those_of_prune_mlp(tmp_path: Path, protect_output: bool) -> None:
    checkpoint = write_two_layer_mnist(tmp_path)
    config = ExperimentConfig(
        networks=["TwoLayerMLP"],
        checkpoint_root=str(tmp_path),
        data_dir=str(tmp_path),
        amounts=[0.3, 0.7],
        calibration_seeds=[5],
        protect_output=[protect_output],
        latency=False,
    )
    records = {
        (record.parameters.measure, record.parameters.method, record.parameters.amount): record
        for record in run(config, tmp_path / "out")
    }
    assert len(records) == 1 + 6 * 2 * 2
    for published, short in PUBLISHED_MEASURES.items():
        for method, amount in (("Local", 0.3), ("Global", 0.7)):
            found = records[short, method.lower(), amount]
            assert found.metrics is not None
            one, scores = prune_mlp(
                "TwoLayerMLP",
                "MNIST",
                published,
                method,
                dict(found.parameters.measure_args),
                amount,
                out_path=tmp_path,
                checkpoint=checkpoint,
                data_dir=str(tmp_path),
                protect_output=protect_output,
                seed=5,
            )
            assert one["top1_acc"] == pytest.approx(found.metrics.top1, abs=0.002)
            assert one["top5_acc"] == pytest.approx(found.metrics.top5, abs=0.002)
            assert one["achieved_amount"] == found.metrics.achieved_amount
            assert one["size"] == found.metrics.num_parameters_before
            assert 2 * one["flops"] == found.metrics.flops_before  # multiply-accumulates, as published
            stored = read_scores(tmp_path / "out", found.key)
            assert stored is not None
            for ours, theirs in zip(stored[0].values(), scores, strict=True):
                assert torch.equal(torch.from_numpy(ours), theirs)


def test_every_cell_is_recorded_once_and_finished_ones_are_not_run_again(tmp_path: Path) -> None:
    config = small(tmp_path, seeds=(0, 1), calibration_seeds=[0, 1], latency=True)
    records = run(config, tmp_path / "out")
    assert len(records) == 2 * (1 + 2 * 2 * 2 * 2)
    assert {record.status for record in records} == {"ok"}
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert run(config, tmp_path / "out") == records
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before
    for record in records:
        assert record.metrics is not None
        assert record.metrics.latency_s_after is not None
        assert record.metrics.latency_s_after > 0
        assert [layer.width for layer in record.metrics.layers] == [24, 16, 10]
        assert record.machine["threads"] == str(torch.get_num_threads())


def test_the_baseline_is_a_record_that_loses_nothing(tmp_path: Path) -> None:
    (dense,) = (r for r in run(small(tmp_path), tmp_path / "out") if r.parameters.measure == DENSE)
    assert dense.metrics is not None
    assert dense.metrics.top1 == dense.metrics.dense_top1
    assert dense.metrics.num_parameters_after == dense.metrics.num_parameters_before
    assert all(layer.kept == layer.width for layer in dense.metrics.layers)


def test_a_larger_grid_adds_its_cells_alone(tmp_path: Path) -> None:
    first = run(small(tmp_path), tmp_path / "out")
    more = run(small(tmp_path, amounts=[0.25, 0.5, 0.75]), tmp_path / "out")
    assert more[: len(first)] == first
    assert len(more) == len(first) + 2 * 2


class Broken:
    """A measure that fails where much is to be removed."""

    def __call__(self, layer: LayerRecord) -> Tensor:
        if layer.amount > 0.3:
            raise ZeroDivisionError("made to fail")
        return torch.ones(len(layer.weight)) / len(layer.weight)


def test_a_failing_cell_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.MEASURES, "broken", Broken)
    config = small(tmp_path, measures=["broken", "norm"])
    records = run(config, tmp_path / "out")
    failed = [record for record in records if record.status == "failed"]
    assert [(record.parameters.measure, record.parameters.amount) for record in failed] == [("broken", 0.5)] * 2
    assert failed[0].error == "ZeroDivisionError: made to fail"
    assert sum(record.status == "ok" for record in records) == 1 + 6
    monkeypatch.setattr(Broken, "__call__", lambda self, layer: torch.ones(len(layer.weight)))
    assert {record.status for record in run(config, tmp_path / "out")} == {"ok"}


def test_a_damaged_checkpoint_fails_its_own_cells(tmp_path: Path) -> None:
    config = small(tmp_path, seeds=(0, 1))
    whole = (tmp_path / "mlp-1.pth").read_bytes()
    (tmp_path / "mlp-1.pth").write_bytes(whole[: len(whole) // 2])
    records = run(config, tmp_path / "out")
    failed = [record for record in records if record.status == "failed"]
    assert len(failed) == len(records) / 2
    assert all(str(record.error).startswith("ValueError: ") for record in failed)
    assert all("mlp-1.pth is damaged" in str(record.error) for record in failed), failed[0].error


def test_a_checkpoint_of_another_network_says_what_to_give(tmp_path: Path) -> None:
    config = small(tmp_path, model_args={})
    errors = {record.error for record in run(config, tmp_path / "out")}
    assert len(errors) == 1
    assert "give its arguments under model_args" in str(errors.pop())


def test_scores_are_computed_once_a_measure_but_for_those_that_look_at_the_amount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    loaded: list[object] = []
    scores, bench = Pruning.scores, Workbench.__init__

    def counted(self, recipe, **rest):  # type: ignore[no-untyped-def]
        scored.append(type(recipe.measure).__name__ + str(getattr(recipe.measure, "z_importance", "")))
        return scores(self, recipe, **rest)

    def loads(self, *arguments, **options):  # type: ignore[no-untyped-def]
        loaded.append(arguments)
        bench(self, *arguments, **options)

    monkeypatch.setattr(Pruning, "scores", counted)
    monkeypatch.setattr(Workbench, "__init__", loads)
    run(
        small(
            tmp_path,
            measures=["norm", "modified_pagerank", {"name": "modified_pagerank", "z_importance": True}],
            protect_output=[True, False],
            compensations=["constant", "zero"],
        ),
        tmp_path / "out",
    )
    assert scored.count("Norm") == 1
    assert scored.count("ModifiedPageRankFalse") == 1
    assert scored.count("ModifiedPageRankTrue") == 2 * 2 * 2 * 2
    assert len(loaded) == 1


def test_every_measure_compensation_and_graph_runs(tmp_path: Path) -> None:
    config = small(
        tmp_path,
        measures=list(measures.MEASURES),
        compensations=["constant", "zero", "mean", "least_squares"],
        graphs=["chain", "dag"],
        amounts=[0.5],
        calibration_samples=128,
    )
    records = run(config, tmp_path / "out")
    assert [record.error for record in records if record.error] == []
    assert len(records) == 1 + 7 * 4 * 2 * 2
    assert records[0].versions["torch"] == str(torch.__version__).partition("+")[0]


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordStore, "append", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(small(tmp_path), tmp_path / "out")


def test_networks_data_and_measures_of_other_packages_run(tmp_path: Path) -> None:
    path = "tests.experiments.trained"
    torch.manual_seed(0)
    checkpoint = save_published(Foreign(channels=8), tmp_path / "foreign.pth")
    network = f"{path}.Foreign@{path}.ForeignData"
    config = ExperimentConfig(
        networks=[network],
        checkpoints={network: str(checkpoint)},
        model_args={network: {"channels": 8}},
        data_args={network: {"count": 64}},
        measures=[f"{path}.ByIndex", "norm"],
        methods=["local"],
        amounts=[0.5],
        graphs=["dag"],
        calibration_samples=32,
        latency=False,
    )
    records = run(config, tmp_path / "out")
    assert [record.error for record in records] == [None] * 3
    mine = next(record for record in records if record.parameters.measure == f"{path}.ByIndex")
    assert mine.metrics is not None
    assert mine.metrics.achieved_amount == pytest.approx(0.5, abs=0.1)
    assert mine.metrics.num_parameters_after < mine.metrics.num_parameters_before


@pytest.mark.slow
def test_ray_gives_what_this_process_gives_from_relative_paths_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("ray") is None:  # importing it here would be too early: it reads its environment when it is imported
        pytest.skip("needs the extra tune")
    monkeypatch.chdir(tmp_path)
    config = small(tmp_path, seeds=(0, 1), checkpoints={"MLP@Digits": ["mlp-0.pth", "mlp-1.pth"]})
    networks, _ = find_networks(config)
    with RecordStore(tmp_path / "ray") as store:
        run_cells(dataclasses.replace(config, engine="ray"), networks, store, Progress(), cells_of(config, networks))
    ours = {record.key: record.metrics for record in run(config, tmp_path / "here")}
    assert {record.key: record.metrics for record in read_records(tmp_path / "ray")} == ours


def guessed(network: nn.Module, images: Tensor) -> Tensor:
    """Labels that a quarter of the images have right at first guess, a quarter at second, and so on."""
    with torch.inference_mode():
        ranked = network.eval()(images).topk(3).indices
    return ranked[torch.arange(len(images)), torch.arange(len(images)) % 3].clone()


@pytest.mark.parametrize("make", [lambda: TwoLayerMLP(64, 8), lambda: SixLayerMLP(64, 8), Foreign])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.8])
def test_accuracies_are_those_of_torchmetrics(make, amount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_CHUNK", 128)
    torch.manual_seed(0)
    network, images = make(), torch.rand(NUM_IMAGES, 1, 8, 8)
    labels = guessed(network, images)
    pruned = Pruning(network, images[:64]).run(amount=amount).model
    expected = top_k_accuracy(pruned, zip(images.split(64), labels.split(64), strict=True), (1, 5))
    assert accuracies(pruned, images, labels) == pytest.approx((expected[1], expected[5]))


class Doubled(nn.Module):
    """Uses its first layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 12), nn.Linear(12, 8)

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.flatten(1).chunk(2, dim=1)
        return self.fc2((self.fc1(upper) - self.fc1(lower).tanh()).tanh())


def in_place() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LeakyReLU(0.5, inplace=True), nn.Linear(12, 8))


@pytest.mark.parametrize("make", [lambda: SixLayerMLP(64, 8), Foreign, Doubled, in_place])
@pytest.mark.parametrize("compensation", ["zero", "mean", "least_squares"])
def test_a_first_layer_looked_up_in_the_dense_network_changes_no_accuracy(
    make, compensation, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, images = make(), torch.rand(NUM_IMAGES, 1, 8, 8)
    result = Pruning(network, images[:64]).run(amount=0.4, compensation=compensation)
    data = runner.TestData(None, images, guessed(result.model, images))
    monkeypatch.setattr(runner, "_CHUNK", 128)
    monkeypatch.setattr(runner, "load_network", lambda trained: network)
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    found = Workbench(None, data, device="cpu", latency=False).test(result)  # type: ignore[arg-type]
    assert found == accuracies(result.model, images, data.labels)
    assert found[0] == pytest.approx(1 / 3, abs=0.02)
    assert all(torch.equal(before[name], tensor) for name, tensor in result.model.state_dict().items())


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), torch.rand(NUM_IMAGES, 1, 8, 8)
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    labels = torch.arange(NUM_IMAGES) % 8
    top1, top5 = accuracies(network, images, labels)
    assert top1 == pytest.approx((labels == 0).float().mean().item())
    assert top5 == pytest.approx((labels < 5).float().mean().item())


def test_logits_that_are_not_finite_and_labels_of_another_data_set_are_refused() -> None:
    network, images = TwoLayerMLP(64, 8), torch.rand(NUM_IMAGES, 1, 8, 8)
    labels = torch.zeros(NUM_IMAGES, dtype=torch.int64)
    with pytest.raises(ValueError, match="label 11 names no class of a model with 8 classes"):
        accuracies(network, images, labels + 11)
    with torch.no_grad():
        network.linear_relu_stack[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match="logits that are not finite"):
        accuracies(network, images, labels)
