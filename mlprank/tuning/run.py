"""A grid search from the command line to the winner."""

import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mlprank.costs.metrics import count_parameters, top_k_accuracy
from mlprank.grids.progress import Progress
from mlprank.pruning.pipeline import prune
from mlprank.pruning.shrink import shrink
from mlprank.training.parser import parse_fit
from mlprank.training.run import build_trial, with_weights
from mlprank.tuning.engines import Engine
from mlprank.tuning.grid import Grid, Request, TuneOptions, expand, option, parse_options, read_request
from mlprank.tuning.store import BEST, MONITOR, Outcome, Store, Trial, format_value
from mlprank.utils.charts import compose, draw_heat_map, search_map, short_names, write_chart
from mlprank.utils.errors import first_line
from mlprank.utils.files import whole_file, write_csv, write_whole

PRUNED = "pruned_top1"
"""What the pruned network reaches: its validation accuracy at an amount or within a budget."""
PARAMETERS = "pruned_parameters"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


_COLUMNS: Mapping[str, Callable[[Any], str]] = {
    PRUNED: _percent,
    PARAMETERS: "{:,.0f}".format,
    MONITOR: _percent,
    "val_top5": _percent,
    "val_loss": "{:.4f}".format,
    "best_epoch": lambda epoch: str(epoch + 1),
}
"""What is shown of the best trials, and how."""


def tune(argv: Sequence[str], *, console: Console | None = None) -> int:
    """Train every trial of a grid that has no record yet, show what is best, and return the exit code.

    A ValueError names an option, a value or a directory that cannot be used, a BusyError another driver that is at work
    there, and a KeyboardInterrupt, after Ctrl-C, says how to go on.
    """
    request = read_request(argv)
    options = parse_options(request.tune)
    return _Search(request, options, expand(request), Store(options.out), console or Console()).run()


@dataclass(frozen=True)
class _Search:
    """A grid and its directory; trials are ranked by the dense network, or by the pruned one."""

    request: Request
    options: TuneOptions
    grid: Grid
    store: Store
    console: Console

    def run(self) -> int:
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
            done = f"{len(earlier)} of them done before; results in {store.out}"
            self.console.out(f"{len(trials)} trials, {done}", highlight=False)
            for trial in trials:  # what a killed search, or one with another metric, left to be measured
                if problem := self.measure(trial):
                    self.console.out(f"note: {trial.label}: {problem}", highlight=False)
            if pending := [trial for trial in trials if store.is_open(trial.key)]:
                self._train(pending, earlier)
            return self._conclude()

    def _train(self, pending: Sequence[Trial], done: Mapping[str, Outcome]) -> None:
        trials, store = self.grid.trials, self.store

        def after(trial: Trial, outcome: Outcome) -> None:
            if problem := self.measure(trial):
                progress.note(f"{trial.label}: {problem}")
            for worse in list(self.ranked())[self.options.keep_checkpoints :]:
                (store.directory(worse) / BEST).unlink(missing_ok=True)

        epochs = max(int(trials[0].config["trainer"].get("max_epochs") or 1), 1)
        progress = Progress(
            trials, unit="trial", metric=MONITOR, epochs=epochs, earlier=done, on_finished=after, console=self.console
        )
        try:
            with progress:
                Engine(self.options, store, progress).run(pending)
        except KeyboardInterrupt:
            so_far = f"{len(self.outcomes())} of {len(trials)} trials are done"
            raise KeyboardInterrupt(f"{so_far}; the same command goes on") from None

    def outcomes(self) -> dict[str, Outcome]:
        """What has come out of the trials so far, by their keys."""
        found = ((trial.key, self.store.outcome(trial.key)) for trial in self.grid.trials)
        return {key: outcome for key, outcome in found if outcome is not None}

    def ranked(self) -> dict[str, float]:
        """The metric, in [0, 1], of the trials that ended well, by their keys; the best first, equal ones as given."""
        scores = {key: outcome.score for key, outcome in self.outcomes().items() if math.isfinite(outcome.score)}
        if self.options.cut:
            found = ((key, self.store.pruned(key, self.options.cut)) for key in scores)
            scores = {key: measured[PRUNED] for key, measured in found if measured}
        return dict(sorted(scores.items(), key=lambda pair: -pair[1]))

    def measure(self, trial: Trial) -> str | None:
        """Prune the best epoch's network of a trial that ended well, and record what it reaches; once."""
        outcome, cut = self.store.outcome(trial.key), self.options.cut
        if not cut or outcome is None or outcome.status != "done" or self.store.pruned(trial.key, cut) is not None:
            return None
        path = self.store.directory(trial.key) / BEST
        if not path.is_file():
            return _missing(path)
        built = build_trial(trial.config, path.parent, devices=1, accelerator="cpu")
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

    def _conclude(self) -> int:
        """Show and write what has come out; return the exit code."""
        store, trials, ranked, outcomes = self.store, self.grid.trials, self.ranked(), self.outcomes()
        rows = {trial.key: self._row(trial, outcomes.get(trial.key)) for trial in trials}
        table = write_csv(store.out / "trials.csv", list(rows.values()))
        picture = write_chart(self._heat_map(ranked), store.out / "heatmap.png")
        lines = [f"all trials: {table}", f"picture: {picture}"]
        if ranked:
            by_key = {trial.key: trial for trial in trials}
            columns = {name: form for name, form in _COLUMNS.items() if name in rows[next(iter(ranked))]}
            shown = Table("trial", title=f"best of {len(ranked)} trials", title_justify="left")
            for name in columns:
                shown.add_column(name.removeprefix("best_"), justify="right")
            for key in list(ranked)[: self.options.top]:
                values = ((form, rows[key][name]) for name, form in columns.items())
                shown.add_row(by_key[key].label, *("" if math.isnan(value) else form(value) for form, value in values))
            self.console.print(shown)
            best, checkpoint, config = by_key[next(iter(ranked))], store.out / BEST, store.out / "best.yaml"
            if not (source := store.directory(best.key) / BEST).is_file():
                raise FileNotFoundError(_missing(source))
            with whole_file(checkpoint) as temporary:
                shutil.copyfile(source, temporary)
            # with all that `fit` does, such as pruning at the end
            winner = parse_fit([*self.request.arguments, *(option(key, value) for key, value in best.point.items())])
            write_whole(config, yaml.safe_dump(winner, sort_keys=False))
            fit = shlex.join(["mlprank", "fit", "--config", str(config)])
            test = shlex.join(["mlprank", "test", "--config", str(config), "--ckpt_path", str(checkpoint)])
            lines += [f"best weights: {checkpoint}", f"train the winner: {fit}", f"test it: {test}"]
        diverged = sum(not math.isfinite(outcome.score) for outcome in outcomes.values())
        if diverged:
            lines.append(f"diverged: {diverged} of {len(trials)} trials")
        for trial in trials:
            if reason := store.failure(trial.key):
                lines.append(f"failed: {trial.label}: {reason}")
            elif trial.key not in outcomes:
                lines.append(f"unfinished: {trial.label}; the same command goes on")
        if diverged and not ranked:
            lines.append("no trial ended well; try smaller learning rates")
        for line in lines:
            self.console.out(line, highlight=False)
        return int(len(outcomes) < len(trials) or not ranked)

    def _heat_map(self, ranked: Mapping[str, float]) -> Any:
        values = {key: [format_value(value) for value in found] for key, found in self.grid.identity["grid"].items()}
        points = [{key: format_value(value) for key, value in trial.point.items()} for trial in self.grid.trials]
        trials = zip(points, (ranked.get(trial.key) for trial in self.grid.trials), strict=True)
        others, metric = len(values) - 2, PRUNED if self.options.cut else MONITOR
        title = f"{metric}, %" + (f", best over {others} more option{'s' * (others > 1)}" if others > 0 else "")
        table = search_map(values, trials, score=metric)
        return compose([draw_heat_map(table, title=title, search=True, width=460)])

    def _row(self, trial: Trial, outcome: Outcome | None) -> dict[str, Any]:
        """Return a trial's row of the table."""
        failure = self.store.failure(trial.key)
        metrics = outcome.metrics if outcome else {}
        cut, unknown = self.options.cut, {PRUNED: math.nan, PARAMETERS: math.nan}
        extra = unknown | (self.store.pruned(trial.key, cut) or {}) if cut else {}
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


def _missing(path: Path) -> str:
    return f"{path} is missing; delete {path.parent} and run the same command again to train that trial anew"
