"""A grid search from the command line to the winner."""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mlprank.costs.metrics import count_parameters, top_k_accuracy
from mlprank.grids.progress import Progress
from mlprank.grids.store import write_csv
from mlprank.pruning.pipeline import prune
from mlprank.pruning.shrink import shrink
from mlprank.training.build import TrialBuilder, with_weights
from mlprank.tuning.engines import choose_engine
from mlprank.tuning.grid import Grid, Request, TuneOptions, expand, option, parse_options, read_request
from mlprank.tuning.store import BEST, MONITOR, Outcome, Store, Trial, format_value
from mlprank.utils.charts import Chart, compose, draw_heat_map, search_map, short_names, write_chart
from mlprank.utils.errors import first_line
from mlprank.utils.files import whole_file, write_whole

UNFINISHED = 1
PRUNED = "pruned_top1"
"""What the pruned network reaches: its validation accuracy at an amount or within a budget."""
PARAMETERS = "pruned_parameters"
Ranked = list[tuple[Trial, Outcome]]


@dataclass(frozen=True)
class Ranking:
    """What trials are ranked by.

    `cut` says how much is pruned, as one option of `prune` or `shrink`, such as `{"amount": 0.5}`; None ranks dense
    networks.
    """

    store: Store
    cut: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The metric's name."""
        return MONITOR if self.cut is None else PRUNED

    def score(self, trial: Trial) -> float:
        """The metric of a trial, in [0, 1]; NaN where it diverged, has not ended, or was not pruned."""
        outcome = self.store.outcome(trial.key)
        if outcome is None or not math.isfinite(outcome.score):
            return math.nan
        return outcome.score if self.cut is None else self.pruned(trial).get(PRUNED, math.nan)

    def pruned(self, trial: Trial) -> Mapping[str, float]:
        """What was measured of a trial's pruned network, by name; nothing where nothing is pruned, or could be."""
        return {} if self.cut is None else self.store.pruned(trial.key, self.cut) or {}

    def measure(self, trial: Trial, cli: TrialBuilder) -> str | None:
        """Prune the best epoch's network of a trial that ended well, and record what it reaches; once."""
        outcome = self.store.outcome(trial.key)
        if self.cut is None or outcome is None or outcome.status != "done":
            return None
        if self.store.pruned(trial.key, self.cut) is not None:
            return None
        path = self.store.directory(trial.key) / BEST
        if not path.is_file():
            return f"{path} is missing; delete {path.parent} and run the same command again to train that trial anew"
        built = cli.build(trial.config, path.parent, trainer={"devices": 1, "accelerator": "cpu"})
        module: Any = with_weights(built.model, path)
        network, data = getattr(module, "model", module), built.datamodule
        data.prepare_data()
        data.setup("fit")
        try:
            found = (
                prune(network, data, **self.cut)
                if "amount" in self.cut
                else shrink(network, data, data, **self.cut).best
            )
        except ValueError as error:
            self.store.record_pruned(trial.key, self.cut, {})
            return first_line(error)
        top1 = top_k_accuracy(found.model, data.val_dataloader(), (1,))[1]
        size = {PARAMETERS: count_parameters(found.model)}
        self.store.record_pruned(trial.key, self.cut, {PRUNED: top1, **size})
        return None


def tune(argv: Sequence[str], *, console: Console | None = None) -> int:
    """Train every trial of a grid that has no record yet, and show what is best.

    Raises:
        ValueError: If an option, a value or the directory cannot be used.
        BusyError: If another driver is at work in the directory.
        KeyboardInterrupt: After Ctrl-C; the text says how to go on.
    """
    console = console or Console()
    request = read_request(argv)
    options = parse_options(request.tune)
    cli = TrialBuilder()
    grid = expand(request, cli.parse)
    store = Store(options.out)
    store.check_grid(grid.identity)  # a grid that is refused leaves nothing behind
    _check([t for t in grid.trials if options.retry_failed or store.is_open(t.key)], cli, store)
    with store.driving():
        store.claim_grid(grid.identity)
        if options.retry_failed:
            for trial in grid.trials:
                store.forget_failure(trial.key)
        pending = [trial for trial in grid.trials if store.is_open(trial.key)]
        ranking = Ranking(store, options.cut)
        _train(pending, grid, ranking, options=options, cli=cli, console=console)
        return _conclude(grid, request, ranking, options=options, cli=cli, console=console)


def _check(trials: Sequence[Trial], cli: TrialBuilder, store: Store) -> None:
    """Build every classifier, so that a value out of range is found before the first trial trains."""
    for trial in trials:
        try:
            cli.build(trial.config, store.directory(trial.key))
        except (ValueError, TypeError) as error:
            raise type(error)(f"grid: {trial.label}: {error}") from error


def _train(
    pending: Sequence[Trial], grid: Grid, ranking: Ranking, *, options: TuneOptions, cli: TrialBuilder, console: Console
) -> None:
    store = ranking.store
    earlier = {t.key: outcome for t in grid.trials if (outcome := store.outcome(t.key)) is not None}
    console.print(
        f"{len(grid.trials)} trials, {len(earlier)} of them done before; results in {store.out}", highlight=False
    )
    for trial in grid.trials:  # what a killed search, or one with another metric, left to be measured
        if problem := ranking.measure(trial, cli):
            console.print(f"note: {trial.label}: {problem}", highlight=False, markup=False, soft_wrap=True)
    if not pending:
        return

    def measured(trial: Trial, outcome: Outcome) -> None:
        if problem := ranking.measure(trial, cli):
            progress.note(f"{trial.label}: {problem}")
        for worse, _ in rank(grid.trials, ranking)[options.keep_checkpoints :]:
            (store.directory(worse.key) / BEST).unlink(missing_ok=True)

    progress = Progress(
        grid.trials,
        unit="trial",
        metric=MONITOR,
        epochs=int(grid.trials[0].config["trainer"].get("max_epochs") or 1),
        finished=earlier,
        on_finished=measured,
        console=console,
    )
    try:
        engine = choose_engine(options, pending, cli, progress)
        with progress:
            engine.run(pending, store, progress)
    except KeyboardInterrupt:
        done = sum(store.outcome(trial.key) is not None for trial in grid.trials)
        raise KeyboardInterrupt(f"{done} of {len(grid.trials)} trials are done; the same command goes on") from None


def _conclude(
    grid: Grid, request: Request, ranking: Ranking, *, options: TuneOptions, cli: TrialBuilder, console: Console
) -> int:
    store, ranked = ranking.store, rank(grid.trials, ranking)
    names = dict(zip(grid.values, short_names(list(grid.values)), strict=True))
    table = write_csv(store.out / "trials.csv", [row_of(trial, ranking, names) for trial in grid.trials])
    outcomes = {trial.key: outcome for trial in grid.trials if (outcome := store.outcome(trial.key)) is not None}
    picture = write_chart(_heat_map(grid, ranking), store.out / "heatmap.png")
    lines = []
    if ranked:
        best = ranked[0][0]
        console.print(best_table(ranked, ranking, top=options.top))
        checkpoint = copy_best(best, store)
        config = _winner_config(best, request, store, cli)
        fit = shlex.join(["mlprank", "fit", "--config", str(config)])
        test = shlex.join(["mlprank", "test", "--config", str(config), "--ckpt_path", str(checkpoint)])
        lines = [f"best weights: {checkpoint}", f"train the winner: {fit}", f"test it: {test}"]
    for line in (f"all trials: {table}", f"picture: {picture}", *lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    diverged = [
        trial for trial in grid.trials if trial.key in outcomes and not math.isfinite(outcomes[trial.key].score)
    ]
    if diverged:
        console.print(f"diverged: {len(diverged)} of {len(grid.trials)} trials", highlight=False)
    left = [trial for trial in grid.trials if trial.key not in outcomes]
    for trial in left:
        reason = store.failure(trial.key)
        text = f"failed: {trial.label}: {reason}" if reason else f"unfinished: {trial.label}; the same command goes on"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if diverged and not ranked:
        console.print("no trial ended well; try smaller learning rates", highlight=False)
    return UNFINISHED if left or not ranked else 0


def _heat_map(grid: Grid, ranking: Ranking) -> Chart:
    values = {key: [format_value(value) for value in found] for key, found in grid.values.items()}
    trials = [
        (
            {key: format_value(value) for key, value in trial.point.items()},
            ranking.score(trial) if ranking.store.outcome(trial.key) is not None else None,
        )
        for trial in grid.trials
    ]
    others = len(values) - 2
    title = f"{ranking.name}, %" + (f", best over {others} more option{'s' * (others > 1)}" if others > 0 else "")
    table = search_map(title, values, trials, score=ranking.name)
    return compose([draw_heat_map(table, title=title, search=True, width=460)])


def best_table(ranked: Ranked, ranking: Ranking, *, top: int) -> Table:
    """Return the table of the best trials."""
    table = Table(title=f"best of {len(ranked)} trials", title_justify="left")
    table.add_column("trial")
    extra = [] if ranking.cut is None else [PRUNED, PARAMETERS]
    for column in (*extra, MONITOR, "val_top5", "val_loss", "epoch"):
        table.add_column(column, justify="right")
    for trial, outcome in ranked[:top]:
        row, found = outcome.metrics, ranking.pruned(trial)
        measured = [f"{100 * found[PRUNED]:.2f} %", f"{found.get(PARAMETERS, math.nan):,.0f}"] if found else []
        values = measured + [f"{100 * row[name]:.2f} %" if name in row else "" for name in (MONITOR, "val_top5")]
        loss = f"{row['val_loss']:.4f}" if "val_loss" in row else ""
        table.add_row(trial.label, *values, loss, str(outcome.best_epoch + 1))
    return table


def _winner_config(best: Trial, request: Request, store: Store, cli: TrialBuilder) -> Path:
    """Write the winner's config with everything that `fit` does, such as pruning at the end."""
    options = [option(key, value) for key, value in best.point.items()]
    path = store.out / "best.yaml"
    config = cli.parse([*request.arguments, *options])
    write_whole(path, yaml.safe_dump(config, sort_keys=False).encode())
    return path


def rank(trials: Sequence[Trial], ranking: Ranking) -> Ranked:
    """Return the trials that ended well, the best first; of equal ones the first in the grid."""
    pairs = [(trial, outcome) for trial in trials if (outcome := ranking.store.outcome(trial.key)) is not None]
    scores = {trial.key: ranking.score(trial) for trial, _ in pairs}
    finite = [pair for pair in pairs if math.isfinite(scores[pair[0].key])]
    return sorted(finite, key=lambda pair: -scores[pair[0].key])


def copy_best(best: Trial, store: Store) -> Path:
    """Copy the best trial's checkpoint to `best.ckpt` of the directory."""
    source, target = store.directory(best.key) / BEST, store.out / BEST
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} is missing; delete {source.parent} and run the same command again to train that trial anew"
        )
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def row_of(trial: Trial, ranking: Ranking, names: Mapping[str, str]) -> dict[str, object]:
    """Return a trial's row of the table."""
    store = ranking.store
    outcome = store.outcome(trial.key)
    failure, pruned = store.failure(trial.key), ranking.pruned(trial)
    status = outcome.status if outcome else "failed" if failure else "unfinished"
    metrics = outcome.metrics if outcome else {}
    return {
        "key": trial.key,
        **{names[key]: format_value(value) for key, value in trial.point.items()},
        "status": status,
        **({} if ranking.cut is None else {name: pruned.get(name, math.nan) for name in (PRUNED, PARAMETERS)}),
        **{name: metrics.get(name, math.nan) for name in (MONITOR, "val_top5", "val_loss", "train_loss")},
        "best_epoch": outcome.best_epoch if outcome else "",
        "duration_s": round(outcome.duration_s, 2) if outcome else "",
        "engine": outcome.engine if outcome else "",
        "error": failure or "",
    }
