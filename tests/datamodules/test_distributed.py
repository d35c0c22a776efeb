import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mlprank.datamodules import DigitsDataModule
from tests.datamodules.networks import Recorder, quiet_trainer


class Report(Callback):
    """Write what a process saw and learned into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, network) -> None:
        content = {"labels": network.labels, "totals": network.seen, "weights": network.layer.weight.tolist()}
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(json.dumps(content))


def run(folder: Path, *, processes: int, batch_size: int) -> list[dict]:
    torch.manual_seed(0)
    strategy = {"strategy": "ddp_spawn", "devices": processes} if processes > 1 else {}
    trainer = quiet_trainer(max_epochs=2, callbacks=[Report(folder)], **strategy)
    trainer.fit(Recorder(), datamodule=DigitsDataModule(batch_size=batch_size))
    return [json.loads((folder / f"{processes}-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_share_an_epoch_and_learn_what_one_learns_from_batches_twice_as_large(tmp_path):
    (single,) = run(tmp_path, processes=1, batch_size=100)
    pair = run(tmp_path, processes=2, batch_size=50)
    together = [sorted(one + two) for one, two in zip(*(rank["labels"] for rank in pair), strict=True)]
    assert together == [sorted(labels) for labels in single["labels"]]
    assert len(pair[0]["totals"]) == 24
    assert pair[0]["totals"] != pair[1]["totals"]
    for rank in pair:
        assert torch.allclose(torch.tensor(rank["weights"]), torch.tensor(single["weights"]), atol=1e-5)
