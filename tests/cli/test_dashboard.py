"""`mlprank dashboard`: the workspace is one that the library itself understands."""

import pytest

pytest.importorskip("wandb_workspaces")

from wandb_workspaces.reports.v2 import internal as panels
from wandb_workspaces.workspaces import internal

from mlprank.cli import main
from mlprank.report.wandb_runs import BEST, LEARNING_RATE, WEIGHT_DECAY, build_workspace, describe_workspace


@pytest.fixture
def view() -> internal.View:
    """The workspace as it would go over the wire, read back by the library's own model."""
    sent = build_workspace(entity="me", project="mine")._to_model()
    return internal.View.model_validate(sent.model_dump(by_alias=True))


def _panels(view: internal.View, section: str) -> list[object]:
    found = [each for each in view.spec.section.panel_bank_config.sections if each.name == section]
    assert len(found) == 1
    return list(found[0].panels)


def test_it_belongs_to_the_project(view: internal.View) -> None:
    assert (view.entity, view.project, view.display_name) == ("me", "mine", "mlprank")


def test_accuracy_is_drawn_against_the_amount_by_measure(view: internal.View) -> None:
    lines = [panel for panel in _panels(view, "Pruning: accuracy") if isinstance(panel, panels.LinePlot)]
    first = lines[0].config
    assert (first.x_axis, first.metrics, first.aggregate) == ("amount", ["top1"], True)
    assert "series" in first.group_by
    assert (first.group_agg, first.group_area) == ("mean", "stderr")
    importance = [p for p in _panels(view, "Pruning: accuracy") if isinstance(p, panels.ParameterImportancePlot)]
    assert [panel.config.target_key for panel in importance] == ["top1"]


def test_the_front_is_accuracy_against_latency_and_size(view: internal.View) -> None:
    plots = _panels(view, "Pruning: latency and size")
    assert [panel.config.x_axis for panel in plots] == ["summary:latency_ms", "summary:size_bytes", "summary:flops"]
    assert {panel.config.y_axis for panel in plots} == {"summary:top1"}
    assert all(panel.config.show_max_y_axis_line for panel in plots)


def test_tuning_has_parallel_coordinates_and_importance(view: internal.View) -> None:
    coordinates, importance, _ = _panels(view, "Tuning")
    assert isinstance(coordinates, panels.ParallelCoordinatesPlot)
    head, _, rest = LEARNING_RATE.partition(".")
    decay, _, after = WEIGHT_DECAY.partition(".")
    accessors = [column.accessor for column in coordinates.config.columns]
    assert accessors == [f"config:{head}.value.{rest}", f"config:{decay}.value.{after}", f"summary:{BEST}"]
    assert importance.config.target_key == BEST


def test_offline_it_prints_every_panel_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["dashboard", "--project", "mine", "--entity", "me"]) == 0
    out = capsys.readouterr().out
    assert 'WANDB_MODE=offline: nothing is sent. The workspace "mlprank" of me/mine would hold:' in out
    assert out.endswith("\n".join(describe_workspace(build_workspace(entity="me", project="mine"))) + "\n")
    assert "  Tuning\n    ParallelCoordinatesPlot: Learning rate, weight decay, accuracy\n" in out


def test_without_a_login_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    assert main(["dashboard"]) == 0
    assert "no login for api.wandb.ai" in capsys.readouterr().out


def test_an_empty_name_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["dashboard", "--project", ""]) == 2
    assert "project is empty; give its name" in capsys.readouterr().err
