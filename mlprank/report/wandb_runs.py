"""Weights & Biases: an experiment as a run, on request one for every cell, and a workspace for the results."""

import dataclasses
import importlib
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, CellRecord
from mlprank.experiments.statistics import series_label
from mlprank.report.charts import PICTURE_KINDS, write_pictures
from mlprank.report.content import Content, conditions_text, content_of
from mlprank.report.findings import all_tables, averaged_over, sentences_of, smallest_good
from mlprank.utils.errors import require
from mlprank.utils.files import write_whole

LEARNING_RATE = "model.optimizer.init_args.lr"
WEIGHT_DECAY = "model.optimizer.init_args.weight_decay"
BEST = "best_val_top1"


def log_experiment(
    config: ExperimentConfig, records: Sequence[CellRecord], *, project: str, entity: str | None, cells: bool
) -> int:
    """Log an experiment as one run; logging again, with more cells, updates it.

    With `cells`, every cell that has none yet gets a run of its own, which `mlprank dashboard` compares; returned is
    how many did.
    """
    import wandb

    # The id of the run is drawn once, so that experiments of one name never share it.
    directory = config.directory
    identity, logged = directory / "wandb-id.txt", directory / "wandb-logged.txt"
    if not identity.is_file():
        write_whole(identity, uuid.uuid4().hex[:12] + "\n")
    run_id = identity.read_text("utf-8").strip()
    start = partial(
        wandb.init,
        project=project,
        entity=entity,
        group=config.name,
        resume="allow",
        dir=str(directory.absolute()),  # the process that W&B writes from may stand elsewhere
        reinit="finish_previous",
        settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
    )
    known = set(logged.read_text("utf-8").splitlines()) if logged.is_file() else set()
    pending = [record for record in records if cells and f"{record.key} {record.status}" not in known]
    for record in pending:
        kind = "dense" if record.parameters.measure == DENSE else "cell"
        identifier = f"{run_id}-{record.key}"
        run = start(name=record.parameters.label, job_type=kind, id=identifier, config=_parameters(record))
        if record.metrics is not None:
            run.log(_numbers(record))
        else:
            run.summary["error"] = record.error
        run.finish(exit_code=0 if record.status == "ok" else 1)
        with logged.open("a", encoding="utf-8") as file:
            file.write(f"{record.key} {record.status}\n")
    content = content_of([directory])
    run = start(name=config.name, job_type="experiment", id=run_id, config=config.plain())
    (directory / "report").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for record in records:
        named = {name: str(value) if isinstance(value, dict) else value for name, value in _parameters(record).items()}
        rows.append({"key": record.key, "status": record.status, **named, **_numbers(record)})
    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    data: list[list[Any]] = [[row.get(name) for name in columns] for row in rows]
    shown: dict[str, Any] = {"cells": wandb.Table(columns=columns, data=data)}
    for table in (table for table in all_tables(content) if table.kind in ("accuracy", "claims", "differences")):
        data = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row] for row in table.rows]
        shown[f"tables/{table.kind}: {table.title}"] = wandb.Table(columns=list(table.columns), data=data)
    for path in write_pictures(content, directory / "report", kinds=PICTURE_KINDS, formats=["png"]):
        shown[f"plots/{path.stem}"] = wandb.Image(str(path))
    run.log(shown)
    run.summary.update(_summary(content))
    run.finish()
    return len(pending)


def _summary(content: Content) -> dict[str, Any]:
    """What W&B shows beside the run's name: the lead of weighted PageRank, and the smallest good network."""
    summary: dict[str, Any] = {"finding": " ".join(sentences_of(content)), "cells_failed": content.num_failed}
    summary["cells_finished"] = len(content.records) - content.num_failed
    for claim in content.claims[:1]:
        lead = claim[0].retention
        summary |= {"retention_lead": lead.mean, "retention_lead_low": lead.low, "retention_lead_high": lead.high}
        summary["retention_lead_over"] = f"{conditions_text(claim[0].settings[0])}; {averaged_over(claim[0])}"
    if best := smallest_good(content.panels):
        panel, label, point = best
        found: dict[str, Any] = {name: getattr(panel.setting, name) for name in ("network", "method", "compensation")}
        found |= {"amount": point.amount, "top1": point.top1.mean, "dense_top1": panel.dense.top1.mean}
        found |= {"measure": label, "num_parameters": point.num_parameters, "cell": point.keys[0]}
        summary |= {f"best/{name}": value for name, value in found.items()}
    return summary


def _parameters(record: CellRecord) -> dict[str, Any]:
    cell = record.parameters
    return dataclasses.asdict(cell) | {"network": f"{cell.model} on {cell.dataset}", "series": series_label(cell)}


def _numbers(record: CellRecord) -> dict[str, Any]:
    """The metrics, or the error; the amount is among them so that it can be the axis of a plot."""
    metrics = record.metrics
    if metrics is None:
        return {"error": record.error}
    numbers = {
        "amount": record.parameters.amount,
        **{name: getattr(metrics, name) for name in ("top1", "top5", "retention", "dense_top1", "achieved_amount")},
        **{name: getattr(metrics, f"{name}_after") for name in ("num_parameters", "flops", "size_bytes")},
        "compression_ratio": metrics.num_parameters_before / max(1, metrics.num_parameters_after),
    }
    if metrics.latency_s_after is not None and metrics.latency_s_before is not None:
        numbers["latency_ms"] = 1000 * metrics.latency_s_after
        numbers["dense_latency_ms"] = 1000 * metrics.latency_s_before
    return {**numbers, **{f"time/{name}": seconds for name, seconds in record.timings.items()}}


def build_workspace(*, entity: str, project: str, name: str = "mlprank") -> Any:
    """Build the workspace; nothing is sent. W&B adds panels for everything else that was logged."""
    for argument, value in (("entity", entity), ("project", project), ("name", name)):
        if not value:
            raise ValueError(f"{argument} is empty; give its name")
    require("dashboard", "wandb_workspaces")
    wr: Any = importlib.import_module("wandb_workspaces.reports.v2")  # it states no types
    ws: Any = importlib.import_module("wandb_workspaces.workspaces")

    # Accuracy against amount: mean over checkpoints and seeds with the standard error.
    look = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr", "max_runs_to_show": 1000}
    look |= {"x": "amount", "title_x": "share of neurons taken out"}
    lines = [
        ("top1", "Top-1 accuracy", "measure", "series"),
        ("retention", "Accuracy retention", "measure", "series"),
        ("top1", "Top-1 accuracy", "method", "method"),
    ]
    # Accuracy against what a pruned network costs; the running maximum is the front.
    costs = [("latency_ms", "latency, ms", False), ("size_bytes", "size, bytes", True), ("flops", "FLOPs", True)]
    top1, best = wr.SummaryMetric("top1"), wr.SummaryMetric(BEST)
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(LEARNING_RATE), display_name="learning rate", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(WEIGHT_DECAY), display_name="weight decay", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=best, display_name="best validation top-1"),
    ]
    sections = {
        "Pruning: accuracy": [
            *(
                wr.LinePlot(title=f"{said} by {by}", y=[metric], title_y=said, groupby=wr.Config(group), **look)
                for metric, said, by, group in lines
            ),
            wr.ParameterImportancePlot(with_respect_to="top1"),
        ],
        "Pruning: latency and size": [
            wr.ScatterPlot(
                title=f"Top-1 accuracy against {said}", x=wr.SummaryMetric(cost), y=top1, log_x=log, running_ymax=True
            )
            for cost, said, log in costs
        ],
        "Tuning": [
            wr.ParallelCoordinatesPlot(title="Learning rate, weight decay, accuracy", columns=columns),
            wr.ParameterImportancePlot(with_respect_to=BEST),
            wr.LinePlot(title="Validation accuracy", x="epoch", y=["val_top1"], max_runs_to_show=100),
        ],
    }
    shown = [ws.Section(name=title, is_open=True, panels=panels) for title, panels in sections.items()]
    return ws.Workspace(entity=entity, project=project, name=name, sections=shown, auto_generate_panels=True)


def describe_workspace(workspace: Any) -> Iterator[str]:
    """Say which panels a workspace holds: a line for every section, and one for each of its panels."""
    for section in workspace.sections:
        yield f"  {section.name}"
        for panel in section.panels:
            title = getattr(panel, "title", None) or f"what {panel.with_respect_to} depends on"
            yield f"    {type(panel).__name__}: {title}"
