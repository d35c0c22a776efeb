"""An experiment in Weights & Biases: a run a cell in one group, and a run with the tables and the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.progress import title_of
from mlprank.experiments.records import DENSE, CellMetrics, CellRecord
from mlprank.experiments.statistics import series_label
from mlprank.report.content import Content, content_of
from mlprank.report.findings import Table, accuracy_tables, difference_tables, sentences_of
from mlprank.report.page import PICTURE_KINDS, write_pictures

LOGGED_NAME = "wandb-logged.txt"
"""In the results directory: the cells that have been logged, so that an experiment that goes on logs the others."""


def log_experiment(
    config: ExperimentConfig, records: Sequence[CellRecord], *, project: str, entity: str | None = None
) -> int:
    """Log the cells that have not been logged, then the tables and pictures of all.

    Args:
        config: The experiment; its name is the group.
        records: Its cells, finished and failed.
        project: The W&B project.
        entity: The W&B entity; None takes the account's default.

    Returns:
        How many cells were logged.

    Raises:
        OSError: If the results directory cannot be written.
    """
    import wandb

    directory = config.directory
    logged = directory / LOGGED_NAME
    known = set(logged.read_text().splitlines()) if logged.is_file() else set()
    pending = [record for record in records if _mark(record) not in known]

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

    for record in pending:
        kind = "dense" if record.parameters.measure == DENSE else "cell"
        run = start(title_of(record.parameters), kind, _run_id(config.name, record.key), _parameters(record))
        if record.metrics is not None:
            run.log(_numbers(record, record.metrics))
        else:
            run.summary["error"] = record.error
        run.finish(exit_code=0 if record.status == "ok" else 1)
        with logged.open("a", encoding="utf-8") as file:
            file.write(_mark(record) + "\n")
    run = start(config.name, "summary", _run_id(config.name, "summary"), config.plain())
    content = content_of([directory])
    run.log({**_tables(content), **_pictures(content, directory)})
    run.summary["finding"] = " ".join(sentences_of(content))
    for claim in content.claims[:1]:
        lead = claim[0].retention
        run.summary["retention_lead"] = lead.mean
        run.summary["retention_lead_low"], run.summary["retention_lead_high"] = lead.low, lead.high
    run.finish()
    return len(pending)


def _mark(record: CellRecord) -> str:
    return f"{record.key} {record.status}"


def _run_id(name: str, key: str) -> str:
    """The same cell has the same run, so that logging twice overwrites."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{key}"


def _parameters(record: CellRecord) -> dict[str, Any]:
    cell = record.parameters
    return {
        "model": cell.model,
        "dataset": cell.dataset,
        "network": f"{cell.model} on {cell.dataset}",
        "measure": cell.measure,
        "measure_args": dict(cell.measure_args),
        "series": series_label(cell),
        "method": cell.method,
        "method_args": dict(cell.method_args),
        "amount": cell.amount,
        "compensation": cell.compensation,
        "graph": cell.graph,
        "protect_output": cell.protect_output,
        "calibration_samples": cell.calibration_samples,
        "calibration_seed": cell.calibration_seed,
        "checkpoint": cell.checkpoint,
        "checkpoint_sha256": cell.checkpoint_sha256,
    }


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


def _tables(content: Content) -> dict[str, Any]:
    tables = [*accuracy_tables(content), *difference_tables(content)]
    return {f"tables/{table.kind}: {table.title}": _table(table) for table in tables}


def _table(table: Table) -> Any:
    import wandb

    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row] for row in table.rows]
    padded = [row + [""] * (len(table.columns) - len(row)) for row in rows]
    return wandb.Table(columns=list(table.columns), data=padded)


def _pictures(content: Content, directory: Path) -> dict[str, Any]:
    import wandb

    place = directory / "report"
    place.mkdir(exist_ok=True)
    drawn = write_pictures(content, place, kinds=PICTURE_KINDS, formats=["png"])
    return {f"plots/{path.stem}": wandb.Image(str(path)) for path in drawn}
