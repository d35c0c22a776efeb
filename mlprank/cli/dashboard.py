"""`mlprank dashboard`: a Weights & Biases workspace for the results."""

import os
from typing import Any

from mlprank.cli.vocabulary import CommandParser


def main(argv: list[str]) -> int:
    """Run `mlprank dashboard`."""
    arguments = command_parser().parse_args(argv)
    from mlprank.report.wandb_runs import build_workspace
    from mlprank.training.loggers import reason_for_offline

    mode = os.environ.get("WANDB_MODE")
    reason = f"WANDB_MODE={mode}" if mode in ("offline", "disabled", "dryrun") else reason_for_offline()
    reason = "--dry-run" if arguments.dry_run else reason
    entity = arguments.entity or os.environ.get("WANDB_ENTITY")
    entity = entity or ("your account" if reason else _default_entity())
    workspace = build_workspace(entity=entity, project=arguments.project, name=arguments.name)
    if reason:
        _print(workspace, why=reason)
        return 0
    import wandb

    try:
        workspace.save()
    except wandb.errors.Error as error:
        raise ValueError(
            f"W&B did not take the workspace of {workspace.entity}/{workspace.project}: {error}; does the project "
            "exist and may you write to it?"
        ) from error
    print(workspace.url)
    return 0


def _print(workspace: Any, *, why: str) -> None:
    from mlprank.report.wandb_runs import describe_workspace

    print(
        f'{why}: nothing is sent. The workspace "{workspace.name}" of {workspace.entity}/{workspace.project} would '
        "hold:"
    )
    print(*describe_workspace(workspace), sep="\n")


def _default_entity() -> str:
    import wandb

    entity = wandb.Api().default_entity
    if not entity:
        raise ValueError("W&B names no default entity for this login; give --entity")
    return str(entity)


def command_parser() -> CommandParser:
    """Describe the command's arguments."""
    about = (
        "Set up a Weights & Biases workspace for what `mlprank experiment --wandb` and `mlprank tune` logged: "
        "accuracy against amount by measure, the latency front, parallel coordinates and parameter importance of "
        "tuning. Offline it prints what it would create."
    )
    parser = CommandParser("dashboard", about, "mlprank dashboard --project mlprank")
    parser.add_argument("--project", default="mlprank", metavar="NAME", help="the project; default mlprank")
    parser.add_argument("--entity", metavar="NAME", help="user or team; default: that of the login")
    parser.add_argument("--name", default="mlprank", metavar="NAME", help="the workspace's name; default mlprank")
    parser.add_argument("--dry_run", action="store_true", help="print what would be created")
    return parser
