"""An experiment in Weights & Biases: one run with all cells, tables and pictures; on request a run for every cell."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, CellMetrics, CellRecord
from mlprank.experiments.statistics import series_label
from mlprank.report.charts import PICTURE_KINDS, write_pictures
from mlprank.report.content import Content, conditions_text, content_of, smallest_good
from mlprank.report.findings import averaged_over, sentences_of
from mlprank.report.tables import Table, accuracy_tables, difference_tables
from mlprank.utils.files import write_whole

LOGGED_NAME = "wandb-logged.txt"
"""In the results directory: the cells that have runs of their own; an experiment that goes on logs the others."""
ID_NAME = "wandb-id.txt"
"""In the results directory: the id of the run, drawn once, so that experiments of one name never share it."""


def log_experiment(
    config: ExperimentConfig,
    records: Sequence[CellRecord],
    *,
    project: str,
    entity: str | None = None,
    cells: bool = False,
) -> int:
    """Log an experiment as one run; logging again, with more cells, updates it.

    With `cells`, every cell that has none yet gets a run of its own, which `mlprank dashboard` compares; returned is
    how many did.
    """
    import wandb

    directory = config.directory
    identity = directory / ID_NAME
    if not identity.is_file():
        write_whole(identity, uuid.uuid4().hex[:12] + "\n")
    run_id = identity.read_text("utf-8").strip()

    def start(name: str, kind: str, run_id: str, values: dict[str, Any]) -> Any:
        return wandb.init(
            project=project,
            entity=entity,
            group=config.name,
            name=name,
            job_type=kind,
            id=run_id,
            resume="allow",
            dir=str(directory.absolute()),  # the process that W&B writes from may stand elsewhere
            config=values,
            reinit="finish_previous",
            settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
        )

    logged = directory / LOGGED_NAME
    known = set(logged.read_text("utf-8").splitlines()) if logged.is_file() else set()
    pending = [record for record in records if cells and _mark(record) not in known]
    for record in pending:
        kind = "dense" if record.parameters.measure == DENSE else "cell"
        run = start(record.parameters.label, kind, f"{run_id}-{record.key}", _parameters(record))
        if record.metrics is not None:
            run.log(_numbers(record, record.metrics))
        else:
            run.summary["error"] = record.error
        run.finish(exit_code=0 if record.status == "ok" else 1)
        with logged.open("a", encoding="utf-8") as file:
            file.write(_mark(record) + "\n")
    content = content_of([directory])
    run = start(config.name, "experiment", run_id, config.plain())
    tables = {
        f"tables/{t.kind}: {t.title}": _table(t) for t in (*accuracy_tables(content), *difference_tables(content))
    }
    (directory / "report").mkdir(exist_ok=True)
    drawn = write_pictures(content, directory / "report", kinds=PICTURE_KINDS, formats=["png"])
    pictures = {f"plots/{path.stem}": wandb.Image(str(path)) for path in drawn}
    run.log({"cells": _cells(records), **tables, **pictures})
    run.summary.update(_summary(content))
    run.finish()
    return len(pending)


def _mark(record: CellRecord) -> str:
    return f"{record.key} {record.status}"


def _cells(records: Sequence[CellRecord]) -> Any:
    """A table with a row for every cell: parameters, numbers, error."""
    import wandb

    rows: list[dict[str, Any]] = [
        {"key": record.key, "status": record.status}
        | {name: str(value) if isinstance(value, dict) else value for name, value in _parameters(record).items()}
        | (_numbers(record, record.metrics) if record.metrics is not None else {"error": record.error})
        for record in records
    ]
    columns: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])


def _summary(content: Content) -> dict[str, Any]:
    """What W&B shows beside the run's name: the lead of weighted PageRank, and the smallest good network."""
    summary: dict[str, Any] = {
        "finding": " ".join(sentences_of(content)),
        "cells_finished": sum(record.status == "ok" for record in content.records),
        "cells_failed": sum(record.status == "failed" for record in content.records),
    }
    for claim in content.claims[:1]:
        lead = claim[0].retention
        summary |= {"retention_lead": lead.mean, "retention_lead_low": lead.low, "retention_lead_high": lead.high}
        summary["retention_lead_over"] = f"{conditions_text(claim[0].settings[0])}; {averaged_over(claim[0])}"
    best = smallest_good(content.panels)
    if best is None:
        return summary
    panel, label, point = best
    return summary | {
        "best/network": panel.setting.network,
        "best/measure": label,
        "best/method": panel.setting.method,
        "best/compensation": panel.setting.compensation,
        "best/amount": point.amount,
        "best/top1": point.top1.mean,
        "best/dense_top1": panel.dense.top1.mean,
        "best/num_parameters": point.num_parameters,
        "best/cell": point.keys[0],
    }


def _parameters(record: CellRecord) -> dict[str, Any]:
    cell = record.parameters
    return dataclasses.asdict(cell) | {"network": f"{cell.model} on {cell.dataset}", "series": series_label(cell)}


def _numbers(record: CellRecord, metrics: CellMetrics) -> dict[str, float]:
    """The metrics; the amount is among them so that it can be the axis of a plot."""
    numbers = {
        "amount": record.parameters.amount,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "retention": metrics.retention,
        "dense_top1": metrics.dense_top1,
        "achieved_amount": metrics.achieved_amount,
        "num_parameters": metrics.num_parameters_after,
        "flops": metrics.flops_after,
        "size_bytes": metrics.size_bytes_after,
        "compression_ratio": metrics.num_parameters_before / max(1, metrics.num_parameters_after),
    }
    if metrics.latency_s_after is not None and metrics.latency_s_before is not None:
        numbers["latency_ms"] = 1000 * metrics.latency_s_after
        numbers["dense_latency_ms"] = 1000 * metrics.latency_s_before
    return {**numbers, **{f"time/{name}": seconds for name, seconds in record.timings.items()}}


def _table(table: Table) -> Any:
    import wandb

    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row] for row in table.rows]
    return wandb.Table(columns=list(table.columns), data=rows)
