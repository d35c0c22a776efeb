"""A grid search from the command line to the winner."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mlprank.grids.durable import write_whole
from mlprank.training.build import TrialBuilder
from mlprank.tuning.choosing import choose_engine
from mlprank.tuning.grid import Grid, Request, expand, option, read_request
from mlprank.tuning.options import TuneOptions, parse_options
from mlprank.tuning.progress import Progress
from mlprank.tuning.ranking import Ranked, copy_best, keep_best_checkpoints, rank, write_table
from mlprank.tuning.store import Store
from mlprank.tuning.trial import MONITOR, Outcome, Trial, format_value
from mlprank.utils.charts import Chart, heat_map_chart, search_map, write_chart

UNFINISHED = 1


def tune(argv: Sequence[str], *, console: Console | None = None) -> int:
    """Train every trial of a grid that has no record yet, and show what is best.

    Args:
        argv: The command line without the command.
        console: Where to show.

    Returns:
        0 where every trial has ended, 1 where some failed or none ended well.

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
    with store.driving():
        store.claim_grid(grid.identity)
        pending = _pending(grid, store, retry=options.retry_failed)
        _check(pending, cli, store)
        _train(pending, grid, store, options=options, cli=cli, console=console)
        return _conclude(grid, request, store, options=options, cli=cli, console=console)


def _pending(grid: Grid, store: Store, *, retry: bool) -> list[Trial]:
    if retry:
        for trial in grid.trials:
            store.forget_failure(trial.key)
    open_trials = [trial for trial in grid.trials if store.outcome(trial.key) is None]
    return [trial for trial in open_trials if store.failure(trial.key) is None]


def _check(trials: Sequence[Trial], cli: TrialBuilder, store: Store) -> None:
    """Build every classifier, so that a value out of range is found before the first trial trains."""
    for trial in trials:
        try:
            cli.build(trial.config, store.directory(trial.key))
        except (ValueError, TypeError) as error:
            raise type(error)(f"grid: {trial.label}: {error}") from error


def _train(
    pending: Sequence[Trial], grid: Grid, store: Store, *, options: TuneOptions, cli: TrialBuilder, console: Console
) -> None:
    earlier = {t.key: outcome for t in grid.trials if (outcome := store.outcome(t.key)) is not None}
    console.print(
        f"{len(grid.trials)} trials, {len(earlier)} of them done before; results in {store.out}", highlight=False
    )
    if not pending:
        return
    progress = Progress(
        grid.trials,
        epochs=int(grid.trials[0].config["trainer"].get("max_epochs") or 1),
        finished=earlier,
        on_finished=lambda: keep_best_checkpoints(grid.trials, store, keep=options.keep_checkpoints),
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
    grid: Grid, request: Request, store: Store, *, options: TuneOptions, cli: TrialBuilder, console: Console
) -> int:
    ranked = rank(grid.trials, store)
    table = write_table(grid.trials, store)
    outcomes = {trial.key: outcome for trial in grid.trials if (outcome := store.outcome(trial.key)) is not None}
    picture = write_chart(_heat_map(grid, outcomes), store.out / "heatmap.png")
    lines = []
    if ranked:
        best = ranked[0][0]
        console.print(best_table(ranked, top=options.top))
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


def _heat_map(grid: Grid, outcomes: Mapping[str, Outcome]) -> Chart:
    values = {key: [format_value(value) for value in found] for key, found in grid.values.items()}
    trials = [
        (
            {key: format_value(value) for key, value in trial.point.items()},
            outcomes[trial.key].score if trial.key in outcomes else None,
        )
        for trial in grid.trials
    ]
    others = len(values) - 2
    title = f"{MONITOR}, %" + (f", best over {others} more option{'s' * (others > 1)}" if others > 0 else "")
    return heat_map_chart([search_map(title, values, trials, score=MONITOR)], whole_range=False, width=460)


def best_table(ranked: Ranked, *, top: int) -> Table:
    """Return the table of the best trials.

    Args:
        ranked: The best first.
        top: How many.
    """
    table = Table(title=f"best of {len(ranked)} trials", title_justify="left")
    table.add_column("trial")
    for column in (MONITOR, "val_top5", "val_loss", "epoch"):
        table.add_column(column, justify="right")
    for trial, outcome in ranked[:top]:
        row = outcome.metrics
        values = [f"{100 * row[name]:.2f} %" if name in row else "" for name in (MONITOR, "val_top5")]
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
