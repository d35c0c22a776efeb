"""A grid search from the command line to the winner."""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mlprank.costs.metrics import count_parameters, top_k_accuracy
from mlprank.grids.progress import Progress
from mlprank.pruning.pipeline import prune
from mlprank.pruning.shrink import shrink
from mlprank.training.build import build_trial, with_weights
from mlprank.training.parser import parse_fit
from mlprank.tuning.engines import choose_engine
from mlprank.tuning.grid import Grid, Request, TuneOptions, expand, option, parse_options, read_request
from mlprank.tuning.store import BEST, MONITOR, Outcome, Store, Trial, format_value
from mlprank.utils.charts import compose, draw_heat_map, search_map, short_names, write_chart
from mlprank.utils.errors import first_line
from mlprank.utils.files import whole_file, write_csv, write_whole

UNFINISHED = 1
PRUNED = "pruned_top1"
"""What the pruned network reaches: its validation accuracy at an amount or within a budget."""
PARAMETERS = "pruned_parameters"


def tune(argv: Sequence[str], *, console: Console | None = None) -> int:
    """Train every trial of a grid that has no record yet, and show what is best.

    Raises:
        ValueError: If an option, a value or the directory cannot be used.
        BusyError: If another driver is at work in the directory.
        KeyboardInterrupt: After Ctrl-C; the text says how to go on.
    """
    request = read_request(argv)
    options = parse_options(request.tune)
    search = Search(request, options, expand(request), Store(options.out), console or Console())
    return search.run()


@dataclass(frozen=True)
class Search:
    """A grid, its directory, and what its trials are ranked by: the dense network, or the pruned one."""

    request: Request
    options: TuneOptions
    grid: Grid
    store: Store
    console: Console = field(repr=False)

    @property
    def metric(self) -> str:
        """The name of what trials are ranked by."""
        return MONITOR if self.options.cut is None else PRUNED

    def run(self) -> int:
        """Train what has no record yet, and show what is best; return the exit code."""
        store, trials, again = self.store, self.grid.trials, self.options.retry_failed
        store.check_grid(self.grid.identity)  # a grid that is refused leaves nothing behind
        for trial in trials:  # a value out of range is found before the first trial trains
            if again or store.is_open(trial.key):
                try:
                    build_trial(trial.config, store.directory(trial.key))
                except (ValueError, TypeError) as error:
                    raise type(error)(f"grid: {trial.label}: {error}") from error
        with store.driving():
            store.claim_grid(self.grid.identity)
            for trial in trials if again else ():
                store.forget_failure(trial.key)
            earlier = self.outcomes()
            self._print(f"{len(trials)} trials, {len(earlier)} of them done before; results in {store.out}")
            for trial in trials:  # what a killed search, or one with another metric, left to be measured
                if problem := self.measure(trial):
                    self._print(f"note: {trial.label}: {problem}")
            if pending := [trial for trial in trials if store.is_open(trial.key)]:
                self._train(pending, earlier)
            return self._conclude()

    def outcomes(self) -> dict[str, Outcome]:
        """What has come out of the trials so far, by their keys."""
        found = ((trial.key, self.store.outcome(trial.key)) for trial in self.grid.trials)
        return {key: outcome for key, outcome in found if outcome is not None}

    def score(self, trial: Trial) -> float:
        """The metric of a trial, in [0, 1]; NaN where it diverged, has not ended, or was not pruned."""
        outcome = self.store.outcome(trial.key)
        if outcome is None or not math.isfinite(outcome.score):
            return math.nan
        return outcome.score if self.options.cut is None else self.pruned(trial).get(PRUNED, math.nan)

    def ranked(self) -> list[Trial]:
        """The trials that ended well, the best first; of equal ones the first in the grid."""
        scores = {trial.key: self.score(trial) for trial in self.grid.trials}
        ended = [trial for trial in self.grid.trials if math.isfinite(scores[trial.key])]
        return sorted(ended, key=lambda trial: -scores[trial.key])

    def pruned(self, trial: Trial) -> Mapping[str, float]:
        """What was measured of a trial's pruned network, by name; nothing where nothing is pruned, or could be."""
        cut = self.options.cut
        return {} if cut is None else self.store.pruned(trial.key, cut) or {}

    def measure(self, trial: Trial) -> str | None:
        """Prune the best epoch's network of a trial that ended well, and record what it reaches; once."""
        outcome, cut = self.store.outcome(trial.key), self.options.cut
        if cut is None or outcome is None or outcome.status != "done" or self.store.pruned(trial.key, cut) is not None:
            return None
        path = self.store.directory(trial.key) / BEST
        if not path.is_file():
            return _missing(path)
        built = build_trial(trial.config, path.parent, trainer={"devices": 1, "accelerator": "cpu"})
        module: Any = with_weights(built.model, path)
        network, data = getattr(module, "model", module), built.datamodule
        data.prepare_data()
        data.setup("fit")
        try:
            found = prune(network, data, **cut) if "amount" in cut else shrink(network, data, data, **cut).best
        except ValueError as error:
            self.store.record_pruned(trial.key, cut, {})
            return first_line(error)
        top1 = top_k_accuracy(found.model, data.val_dataloader(), (1,))[1]
        self.store.record_pruned(trial.key, cut, {PRUNED: top1, PARAMETERS: count_parameters(found.model)})
        return None

    def _train(self, pending: Sequence[Trial], earlier: Mapping[str, Outcome]) -> None:
        trials, store = self.grid.trials, self.store

        def measured(trial: Trial, outcome: Outcome) -> None:
            if problem := self.measure(trial):
                progress.note(f"{trial.label}: {problem}")
            for worse in self.ranked()[self.options.keep_checkpoints :]:
                (store.directory(worse.key) / BEST).unlink(missing_ok=True)

        progress = Progress(
            trials,
            unit="trial",
            metric=MONITOR,
            epochs=int(trials[0].config["trainer"].get("max_epochs") or 1),
            finished=earlier,
            on_finished=measured,
            console=self.console,
        )
        try:
            engine = choose_engine(self.options, pending, progress)
            with progress:
                engine.run(pending, store, progress)
        except KeyboardInterrupt:
            done = len(self.outcomes())
            raise KeyboardInterrupt(f"{done} of {len(trials)} trials are done; the same command goes on") from None

    def _conclude(self) -> int:
        """Show and write what has come out; return the exit code."""
        store, ranked, outcomes = self.store, self.ranked(), self.outcomes()
        table = write_csv(store.out / "trials.csv", [self._row(trial) for trial in self.grid.trials])
        picture = write_chart(self._heat_map(), store.out / "heatmap.png")
        lines = []
        if ranked:
            self.console.print(self._best_table(ranked))
            checkpoint, config = self._copy_best(ranked[0])
            fit = shlex.join(["mlprank", "fit", "--config", str(config)])
            test = shlex.join(["mlprank", "test", "--config", str(config), "--ckpt_path", str(checkpoint)])
            lines = [f"best weights: {checkpoint}", f"train the winner: {fit}", f"test it: {test}"]
        diverged = [outcome for outcome in outcomes.values() if not math.isfinite(outcome.score)]
        if diverged:
            lines.append(f"diverged: {len(diverged)} of {len(self.grid.trials)} trials")
        left = [trial for trial in self.grid.trials if trial.key not in outcomes]
        for trial in left:
            reason = store.failure(trial.key)
            lines.append(
                f"failed: {trial.label}: {reason}" if reason else f"unfinished: {trial.label}; the same command goes on"
            )
        if diverged and not ranked:
            lines.append("no trial ended well; try smaller learning rates")
        for line in (f"all trials: {table}", f"picture: {picture}", *lines):
            self._print(line)
        return UNFINISHED if left or not ranked else 0

    def _heat_map(self) -> Any:
        values = {key: [format_value(value) for value in found] for key, found in self.grid.values.items()}
        outcomes = self.outcomes()
        trials = [
            (
                {key: format_value(value) for key, value in trial.point.items()},
                self.score(trial) if trial.key in outcomes else None,
            )
            for trial in self.grid.trials
        ]
        others = len(values) - 2
        title = f"{self.metric}, %" + (f", best over {others} more option{'s' * (others > 1)}" if others > 0 else "")
        table = search_map(title, values, trials, score=self.metric)
        return compose([draw_heat_map(table, title=title, search=True, width=460)])

    def _best_table(self, ranked: Sequence[Trial]) -> Table:
        table, outcomes = Table(title=f"best of {len(ranked)} trials", title_justify="left"), self.outcomes()
        table.add_column("trial")
        extra = [] if self.options.cut is None else [PRUNED, PARAMETERS]
        for column in (*extra, MONITOR, "val_top5", "val_loss", "epoch"):
            table.add_column(column, justify="right")
        for trial in ranked[: self.options.top]:
            outcome, found = outcomes[trial.key], self.pruned(trial)
            row = outcome.metrics
            measured = [f"{100 * found[PRUNED]:.2f} %", f"{found.get(PARAMETERS, math.nan):,.0f}"] if found else []
            values = measured + [f"{100 * row[name]:.2f} %" if name in row else "" for name in (MONITOR, "val_top5")]
            loss = f"{row['val_loss']:.4f}" if "val_loss" in row else ""
            table.add_row(trial.label, *values, loss, str(outcome.best_epoch + 1))
        return table

    def _copy_best(self, best: Trial) -> tuple[Path, Path]:
        """Copy the winner's checkpoint, and write its config with all that `fit` does, such as pruning at the end."""
        source, target, config = (
            self.store.directory(best.key) / BEST,
            self.store.out / BEST,
            self.store.out / "best.yaml",
        )
        if not source.is_file():
            raise FileNotFoundError(_missing(source))
        with whole_file(target) as temporary:
            shutil.copyfile(source, temporary)
        winner = parse_fit([*self.request.arguments, *(option(key, value) for key, value in best.point.items())])
        write_whole(config, yaml.safe_dump(winner, sort_keys=False))
        return target, config

    def _row(self, trial: Trial) -> dict[str, object]:
        """Return a trial's row of the table."""
        outcome, failure = self.store.outcome(trial.key), self.store.failure(trial.key)
        metrics = outcome.metrics if outcome else {}
        extra = {} if self.options.cut is None else {PRUNED: math.nan, PARAMETERS: math.nan, **self.pruned(trial)}
        return {
            "key": trial.key,
            **dict(zip(short_names(list(trial.point)), map(format_value, trial.point.values()), strict=True)),
            "status": outcome.status if outcome else "failed" if failure else "unfinished",
            **extra,
            **{name: metrics.get(name, math.nan) for name in (MONITOR, "val_top5", "val_loss", "train_loss")},
            "best_epoch": outcome.best_epoch if outcome else "",
            "duration_s": round(outcome.duration_s, 2) if outcome else "",
            "engine": outcome.engine if outcome else "",
            "error": failure or "",
        }

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _missing(path: Path) -> str:
    return f"{path} is missing; delete {path.parent} and run the same command again to train that trial anew"
