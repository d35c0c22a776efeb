"""Train a recipe with several seeds, as one stack where the network allows it; the same command goes on.

A seed stands for initialisation, validation split, order of the images and augmentation.

Run: python docs/results/train.py configs/thesis/two_layer_mnist.yaml --seeds 0 1 2 3 4 --out
    runs/results/two_layer_mnist
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from mlprank.grids.progress import Progress
from mlprank.training.parser import parse_fit
from mlprank.tuning.engines import Engine
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.store import MONITOR, Store, Trial, trial_config, trial_key


def main() -> None:
    """Train what has no record yet, and print where every seed's best weights are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--engine", default="auto", choices=["auto", "batched", "local"])
    arguments, options = parser.parse_known_args()
    trials = []
    for seed in arguments.seeds:
        given = [f"--config={arguments.config}", *options, f"--seed_everything={seed}", f"--data.init_args.seed={seed}"]
        config = trial_config(parse_fit(given))
        trials.append(Trial(key=trial_key(config), point={"seed_everything": seed}, config=config))
    store = Store(arguments.out)
    with store.driving():
        pending = [trial for trial in trials if store.outcome(trial.key) is None]
        finished = {trial.key: outcome for trial in trials if (outcome := store.outcome(trial.key)) is not None}
        epochs = int(trials[0].config["trainer"]["max_epochs"])
        shown = Progress(trials, unit="trial", metric=MONITOR, epochs=epochs, earlier=finished, console=Console())
        if pending:
            tune = TuneOptions(out=arguments.out, engine=arguments.engine, checkpoint_minutes=2.0)
            with shown:
                Engine(tune, store, shown).run(pending)
    for trial in trials:
        outcome = store.outcome(trial.key)
        directory = store.directory(trial.key)
        if outcome is None:
            print(f"{trial.label}: {store.failure(trial.key)}")
            continue
        link = Path(arguments.out) / f"seed{trial.point['seed_everything']}.ckpt"
        link.unlink(missing_ok=True)
        link.hardlink_to(directory / "best.ckpt")
        last = outcome.history[-1]["val_top1"]
        print(
            f"{link}: validation top-1 {100 * outcome.score:.2f} % at epoch {outcome.best_epoch + 1}, "
            f"{100 * last:.2f} % after"
            f" the last; {outcome.duration_s:.0f} s, {outcome.engine}, {outcome.device}"
        )


if __name__ == "__main__":
    main()
