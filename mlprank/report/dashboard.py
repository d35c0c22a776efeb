"""The Weights & Biases workspace for the project's results: what pruning keeps, what it saves, and what tuning found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEARNING_RATE = "model.optimizer.init_args.lr"
WEIGHT_DECAY = "model.optimizer.init_args.weight_decay"
VALIDATION = "val_top1"
BEST = "best_val_top1"


@dataclass(frozen=True)
class PanelInWords:
    """A panel as a line of text: its section, its kind, its title."""

    section: str
    kind: str
    title: str


def build_workspace(*, entity: str, project: str, name: str = "mlprank") -> Any:
    """Build the workspace; nothing is sent. W&B adds panels for everything else that was logged, pictures and tables too.

    Args:
        entity: The W&B entity that it will belong to.
        project: The W&B project whose runs it shows.
        name: Its name.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; its `save` sends it.

    Raises:
        ImportError: If wandb-workspaces is not installed.
        ValueError: If a name is empty.
    """
    for argument, value in (("entity", entity), ("project", project), ("name", name)):
        if not value:
            raise ValueError(f"{argument} is empty; give its name")
    ws, wr = _library()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Pruning: accuracy", is_open=True, panels=_accuracy_panels(wr)),
            ws.Section(name="Pruning: latency and size", is_open=True, panels=_cost_panels(wr)),
            ws.Section(name="Tuning", is_open=True, panels=_tuning_panels(wr)),
        ],
        auto_generate_panels=True,
    )


def describe_workspace(workspace: Any) -> tuple[PanelInWords, ...]:
    """Say which panels a workspace holds."""
    return tuple(
        PanelInWords(
            section.name,
            type(panel).__name__,
            getattr(panel, "title", None) or f"what {panel.with_respect_to} depends on",
        )
        for section in workspace.sections
        for panel in section.panels
    )


def _accuracy_panels(wr: Any) -> list[Any]:
    """Accuracy against amount: a line a measure, mean over checkpoints and seeds with the standard error."""

    def against_amount(metric: str, title: str, *, groupby: str) -> Any:
        return wr.LinePlot(
            title=title,
            x="amount",
            y=[metric],
            title_x="share of neurons taken out",
            title_y=title.partition(" by ")[0],
            groupby=wr.Config(groupby),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=1000,
        )

    return [
        against_amount("top1", "Top-1 accuracy by measure", groupby="series"),
        against_amount("retention", "Accuracy retention by measure", groupby="series"),
        against_amount("top1", "Top-1 accuracy by method", groupby="method"),
        wr.ParameterImportancePlot(with_respect_to="top1"),
    ]


def _cost_panels(wr: Any) -> list[Any]:
    """Accuracy against what a pruned network costs; the running maximum is the front."""

    def front(metric: str, title: str, *, log: bool = False) -> Any:
        return wr.ScatterPlot(
            title=title, x=wr.SummaryMetric(metric), y=wr.SummaryMetric("top1"), log_x=log, running_ymax=True
        )

    return [
        front("latency_ms", "Top-1 accuracy against latency, ms"),
        front("size_bytes", "Top-1 accuracy against size, bytes", log=True),
        front("flops", "Top-1 accuracy against FLOPs", log=True),
    ]


def _tuning_panels(wr: Any) -> list[Any]:
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(LEARNING_RATE), display_name="learning rate", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(WEIGHT_DECAY), display_name="weight decay", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(BEST), display_name="best validation top-1"),
    ]
    return [
        wr.ParallelCoordinatesPlot(title="Learning rate, weight decay, accuracy", columns=columns),
        wr.ParameterImportancePlot(with_respect_to=BEST),
        wr.LinePlot(title="Validation accuracy", x="epoch", y=[VALIDATION], max_runs_to_show=100),
    ]


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError(
            "mlprank dashboard needs wandb-workspaces; install it by: pip install 'mlprank[dashboard]'"
        ) from error
    return ws, wr
