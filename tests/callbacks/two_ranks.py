"""Run by `test_ranks.py`: fits on two gloo processes in several ways, and writes what each rank saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Sampler

import mlprank.pruning.evaluation
from mlprank.callbacks import Linear, PruningCallback
from mlprank.surgery.masks import masked_rows
from tests.callbacks.projects import Project, blobs, trainer_for


class Uneven(Sampler[int]):
    """Gives rank 0 five batches of twelve and rank 1 two, or none of them anything."""

    def __init__(self, rank: int, sizes: tuple[int, int]) -> None:
        self.indices = range(rank * 120, rank * 120 + sizes[rank])

    def __iter__(self) -> Any:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Data(LightningDataModule):
    """Training data by rank; calibration data of another size by rank."""

    def __init__(self, case: str) -> None:
        super().__init__()
        if case in ("uneven", "empty"):
            self.calibration_dataloader = self._calibration  # type: ignore[method-assign]
        self.sizes = (60, 0) if case == "empty" else (60, 24)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(), batch_size=30)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(seed=1), batch_size=60)

    def _calibration(self, num_samples: int, seed: int) -> DataLoader[Any]:
        assert self.trainer is not None
        return DataLoader(blobs(), batch_size=12, sampler=Uneven(self.trainer.global_rank, self.sizes))


class Different(PruningCallback):
    """Starts from other weights on rank 1."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            torch.manual_seed(1)
            for parameter in pl_module.parameters():
                torch.nn.init.normal_(parameter.data)
        super().on_fit_end(trainer, pl_module)


def fit(case: str, out: Path) -> None:
    """Fit once, and write down what this rank saw."""
    torch.manual_seed(0)
    module = Project()
    schedule = Linear(0, 1) if case == "scheduled" else None
    measure = "norm" if case == "different" else "activation"
    cls = Different if case == "different" else PruningCallback
    amount: dict[str, Any] = {"max_drop": 5.0, "refine": 5} if case == "budget" else {"amount": 0.5}
    callback = cls(**amount, schedule=schedule, num_samples=100, measure=measure)
    trainer = trainer_for(
        out,
        callback,
        max_epochs=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        devices=2,
        enable_checkpointing=case == "scheduled",
    )
    problem = ""
    try:
        trainer.fit(module, datamodule=Data(case))
    except (ValueError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
    scores = [{name: score.tolist() for name, score in each.result.scores.items()} for each in callback.evaluations]
    seen = {
        "problem": problem,
        "rows": {name: kept.tolist() for name, kept in masked_rows(module).items()},
        "scores": scores,
        "weights": float(sum(parameter.detach().double().abs().sum() for parameter in module.parameters())),
        "files": [str(path) for files in callback.files for path in files.values()],
        "top1": [each.after.top_k.get(1) for each in callback.evaluations],
    }
    out.mkdir(exist_ok=True)
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    mlprank.pruning.evaluation._LATENCY_BUDGET_S = 0.01
    for each in ("uneven", "scheduled", "budget", "empty", "different"):
        fit(each, Path(sys.argv[1]) / each)
