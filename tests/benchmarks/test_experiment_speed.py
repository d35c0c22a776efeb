"""How much sharing saves: 60 cells of ThreeLayerMLP on FashionMNIST, against the same through `prune_mlp`.

Run: pytest tests/benchmarks/test_experiment_speed.py -n 0 -m "" -s

One thread, process start and imports excluded, in one run. The sixty cells run one by one in five parts; before each
part the whole experiment runs once for the numbers that `prune_mlp` gives, and once with latencies measured as well,
which is the default.
"""

import statistics
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn.functional import cross_entropy

from mlprank.datamodules import FashionMNISTDataModule
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, RecordStore, read_records
from mlprank.experiments.runner import cells_of, find_networks, run_cells
from mlprank.grids.progress import Progress
from mlprank.measures import PUBLISHED_MEASURES
from mlprank.models import ThreeLayerMLP
from mlprank.thesis import prune_mlp

FILES = Path("/usr/share/datasets/fashion-mnist")
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5)


class Spent(NamedTuple):
    """Seconds by the clock, and of the processor in all threads."""

    wall_s: float
    processor_s: float

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s - other.wall_s, self.processor_s - other.processor_s)


def now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


def train(path: Path) -> None:
    """One epoch; a network that has learnt something has the margins of a real one."""
    torch.manual_seed(0)
    network, data = ThreeLayerMLP(), FashionMNISTDataModule(batch_size=256)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for images, labels in data.train_dataloader():
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    torch.save({"model": network.state_dict()}, path)


@pytest.mark.slow
@pytest.mark.skipif(not FILES.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_sixty_cells_take_under_a_minute_and_a_sixth_of_one_by_one(
    tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "ThreeLayerMLP_FashionMNIST.pth"
    train(checkpoint)
    prune_mlp("ThreeLayerMLP", "FashionMNIST", "ChannelNorm", amount=0.1, checkpoint=checkpoint)  # imports
    together: dict[bool, list[Spent]] = {False: [], True: []}
    single: list[Spent] = []
    numbers: dict[tuple[str, str, float], dict[str, float]] = {}
    for amount in AMOUNTS:
        for latency in (False, True):
            out = tmp_path / f"{amount} {latency}"
            started = now()
            config = ExperimentConfig(
                networks=["ThreeLayerMLP"], amounts=AMOUNTS, checkpoint_root=str(tmp_path), latency=latency
            )
            networks, _ = find_networks(config)
            cells = cells_of(config, networks)
            with RecordStore(out) as store:
                run_cells(config, networks, store, Progress(), cells)
            together[latency].append(now() - started)
        for measure, method in product(PUBLISHED_MEASURES, ("Local", "Global")):
            started = now()
            numbers[measure, method, amount], _ = prune_mlp(
                "ThreeLayerMLP", "FashionMNIST", measure, method, amount=amount, checkpoint=checkpoint
            )
            single.append(now() - started)
    theirs = Spent(sum(each.wall_s for each in single), sum(each.processor_s for each in single))
    ours, timed = (
        Spent(statistics.median(each.wall_s for each in runs), statistics.median(each.processor_s for each in runs))
        for runs in together.values()
    )
    with capsys.disabled():
        print(f"\n60 cells one by one {theirs.wall_s:.1f} s")
        for what, spent in (("together", ours), ("together, with latencies", timed)):
            print(
                f"{what} {spent.wall_s:.2f} s ({spent.processor_s:.2f} s of processor): one by one is "
                f"{theirs.wall_s / spent.wall_s:.1f} times that ({theirs.processor_s / spent.processor_s:.1f} times)"
            )
    records = read_records(out)
    found = {(r.parameters.measure, r.parameters.method, r.parameters.amount): r.metrics for r in records}
    assert len(numbers) == sum(record.parameters.measure != DENSE for record in records) == 60
    for (measure, method, amount), expected in numbers.items():
        metrics = found[PUBLISHED_MEASURES[measure], method.lower(), amount]
        assert metrics is not None
        assert metrics.top1 == pytest.approx(expected["top1_acc"], abs=0.0005)
        assert metrics.top5 == pytest.approx(expected["top5_acc"], abs=0.0005)
        assert metrics.achieved_amount == expected["achieved_amount"]
        assert metrics.num_parameters_after == expected["size_nz"]
        assert metrics.latency_s_after is not None
    assert timed.wall_s < 60
    assert theirs.wall_s >= 6 * ours.wall_s
