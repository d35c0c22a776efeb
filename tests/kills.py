"""Kill -9 at random moments, the same command again, and count what was lost, repeated or torn.

A search or an experiment is killed within a fresh or half-done grid, `mlprank fit` after its first checkpoint; it then
goes on with `--ckpt_path last`, and must end with the weights, to the bit, of a run that nobody killed.

Run: python -m tests.kills --kills 10 --what batched local ray experiment; python -m tests.kills --kills 20 --what fit
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.experiments.records import from_line
from mlprank.grids.store import CorruptRecordError, read_record
from tests.experiments.trained import write_digits_experiment

LR = "model.optimizer.init_args.lr"
_DEADLINE_S = 600
_EPOCHS = 40
_CONFIG = """\
seed_everything: 0
trainer: {max_epochs: 40, accelerator: cpu}
model:
  model: {class_path: mlprank.models.MLP, init_args: {in_features: 64, widths: [12], num_classes: 10}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data: {class_path: mlprank.datamodules.DigitsDataModule, init_args: {batch_size: 64}}
"""


@dataclass
class Tally:
    """What kills did.

    Attributes:
        kills: Processes that were killed at work.
        records: Records in the end.
        lost: Records that were there before a kill and not in the end.
        repeated: Records that were written again.
        torn: Files or lines that are not whole.
    """

    kills: int = 0
    records: int = 0
    lost: int = 0
    repeated: int = 0
    torn: int = 0


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `mlprank` in a process group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "mlprank", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def records_of(what: str, out: Path) -> tuple[dict[str, str], int, int]:
    """The records by key, how many lines or files are not whole, and how many keys are there twice."""
    found: dict[str, str] = {}
    torn = twice = 0
    if what != "experiment":
        for path in out.glob("trials/*/result.json"):
            try:
                record = read_record(path)
            except CorruptRecordError:
                torn += 1
            else:
                found[path.parent.name] = json.dumps(record)
        return found, torn, twice
    path = out / "records.jsonl"
    lines = (
        path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    )  # half a last line belongs to the killed writer
    for line in lines:
        try:
            record = from_line(line.decode(), str(path))
        except CorruptRecordError:
            torn += 1
        else:
            twice += record.key in found
            found[record.key] = line.decode()
    return found, torn, twice


def run_fit(*, kills: int, folder: Path) -> Tally:
    """Kill a training after its first checkpoint so often, three times a run; then finish it."""
    tally, draw, attempt = Tally(), random.Random(time.time_ns()), 0
    whole = _trained(folder / "whole", kills=0, draw=draw, tally=Tally())
    while tally.kills < kills:
        attempt += 1
        place = folder / str(attempt)
        found = _trained(place, kills=min(3, kills - tally.kills), draw=draw, tally=tally)
        tally.repeated += any(not torch.equal(tensor, found[name]) for name, tensor in whole.items())
        with (place / "out" / "001" / "metrics.csv").open() as file:
            epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["train_loss"]]
        tally.records += len(epochs)
        tally.lost += _EPOCHS - len(set(epochs))
        tally.repeated += len(epochs) - len(set(epochs))
        tally.torn += sum(1 for path in (place / "out").rglob(".[0-9]*"))
    return tally


def _trained(place: Path, *, kills: int, draw: random.Random, tally: Tally) -> dict[str, torch.Tensor]:
    """Train to the end, killed on the way, and return the weights after the last epoch."""
    place.mkdir()
    config, out = place / "small.yaml", place / "out"
    config.write_text(_CONFIG)
    last = out / "001" / "checkpoints" / "last.ckpt"
    arguments = ["fit", f"--config={config}", f"--trainer.default_root_dir={out}"]
    epoch = -1
    for _ in range(kills):
        process = start([*arguments, *(["--ckpt_path=last"] if last.is_file() else [])], place / "log.txt")
        before, begun = last.stat().st_mtime_ns if last.is_file() else 0, time.monotonic()
        while process.poll() is None and time.monotonic() - begun < _DEADLINE_S:
            if last.is_file() and last.stat().st_mtime_ns != before:
                break  # a checkpoint of this process
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 2.0))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        tally.kills += 1
        try:
            reached = int(read_checkpoint(last)["epoch"])
            read_checkpoint(last.with_name("best.ckpt"))
        except (ValueError, OSError):
            tally.torn += 1
        else:
            tally.lost += reached < epoch
            epoch = reached
    process = start([*arguments, *(["--ckpt_path=last"] if last.is_file() else [])], place / "log.txt")
    if process.wait(timeout=_DEADLINE_S) != 0:
        raise RuntimeError((place / "log.txt").read_text()[-2000:])
    state: dict[str, torch.Tensor] = read_checkpoint(last)["state_dict"]
    return state


def run(what: str, *, kills: int, folder: Path) -> Tally:
    """Kill a search or an experiment that often, each time within a fresh or half-done grid; then finish it."""
    tally = Tally()
    draw = random.Random(time.time_ns())
    attempt = 0
    while tally.kills < kills:
        attempt += 1
        place = folder / f"{what}-{attempt}"
        place.mkdir()
        arguments, out = _command(what, place)
        kept: dict[str, str] = {}
        for _ in range(3):
            process = start(arguments, place / "log.txt")
            begun = time.monotonic()
            while process.poll() is None and not _at_work(what, out) and time.monotonic() - begun < _DEADLINE_S:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.4 if what == "experiment" else 4.0))
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.kills += 1
            _compare(tally, what, out, kept)
        process = start(arguments, place / "log.txt")
        if process.wait(timeout=_DEADLINE_S) != 0:
            raise RuntimeError((place / "log.txt").read_text()[-2000:])
        tally.records += len(_compare(tally, what, out, kept))
        tally.torn += sum(1 for path in out.rglob(".*") if path.is_file() and "wandb" not in str(path))
    return tally


def _compare(tally: Tally, what: str, out: Path, kept: dict[str, str]) -> dict[str, str]:
    found, torn, twice = records_of(what, out)
    tally.lost += len(kept.keys() - found.keys())
    tally.repeated += twice + sum(found[key] != text for key, text in kept.items() if key in found)
    tally.torn += torn
    kept.update(found)
    return found


def _command(what: str, place: Path) -> tuple[list[str], Path]:
    if what == "experiment":
        config = write_digits_experiment(
            place, seeds=(0, 1, 2), amounts=[round(0.02 * i, 2) for i in range(1, 46)], out=str(place / "out")
        )
        return ["experiment", "--config", str(config)], place / "out"
    config = place / "small.yaml"
    config.write_text(_CONFIG)
    options = ["--tune.checkpoint_minutes=0", *(["--tune.trials_per_stack=1"] if what == "ray" else [])]
    grid = f"--grid.{LR}=[0.01, 0.003, 0.001, 0.0003]"
    return [
        "tune",
        f"--config={config}",
        f"--tune.out={place / 'out'}",
        f"--tune.engine={what}",
        grid,
        *options,
    ], place / "out"


def _at_work(what: str, out: Path) -> bool:
    if what == "experiment":
        path = out / "records.jsonl"
        return path.is_file() and path.stat().st_size > 0
    return any(out.glob("stacks/*")) if what == "batched" else any(out.glob("trials/*/lock*"))


def main() -> None:
    """Print a line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--what", nargs="+", default=["batched", "local", "ray", "experiment", "fit"])
    arguments = parser.parse_args()
    for what in arguments.what:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            fit = what == "fit"
            tally = (
                run_fit(kills=arguments.kills, folder=place) if fit else run(what, kills=arguments.kills, folder=place)
            )
        print(f"{what}: {tally}", flush=True)


if __name__ == "__main__":
    main()
