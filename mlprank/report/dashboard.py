"""The Weights & Biases workspace of the results: what pruning keeps, what it saves, and what tuning found."""

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
    """Build the workspace; nothing is sent. W&B adds panels for everything else that was logged."""
    for argument, value in (("entity", entity), ("project", project), ("name", name)):
        if not value:
            raise ValueError(f"{argument} is empty; give its name")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise ImportError(
            "mlprank dashboard needs wandb-workspaces; install it by: pip install 'mlprank[dashboard]'"
        ) from error
    sections = {
        "Pruning: accuracy": _accuracy_panels(wr),
        "Pruning: latency and size": _cost_panels(wr),
        "Tuning": _tuning_panels(wr),
    }
    shown = [ws.Section(name=title, is_open=True, panels=panels) for title, panels in sections.items()]
    return ws.Workspace(entity=entity, project=project, name=name, sections=shown, auto_generate_panels=True)


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
    """Accuracy against amount: mean over checkpoints and seeds with the standard error."""
    lines = [
        ("top1", "Top-1 accuracy by measure", "series"),
        ("retention", "Accuracy retention by measure", "series"),
        ("top1", "Top-1 accuracy by method", "method"),
    ]
    plots = [
        wr.LinePlot(
            title=title,
            x="amount",
            y=[metric],
            title_x="share of neurons taken out",
            title_y=title.partition(" by ")[0],
            groupby=wr.Config(group),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=1000,
        )
        for metric, title, group in lines
    ]
    return [*plots, wr.ParameterImportancePlot(with_respect_to="top1")]


def _cost_panels(wr: Any) -> list[Any]:
    """Accuracy against what a pruned network costs; the running maximum is the front."""
    costs = [("latency_ms", "latency, ms", False), ("size_bytes", "size, bytes", True), ("flops", "FLOPs", True)]
    return [
        wr.ScatterPlot(
            title=f"Top-1 accuracy against {said}",
            x=wr.SummaryMetric(metric),
            y=wr.SummaryMetric("top1"),
            log_x=log,
            running_ymax=True,
        )
        for metric, said, log in costs
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
