"""`mlprank dashboard`: a Weights & Biases workspace for the results."""

import os

from mlprank.cli.vocabulary import CommandParser

PARSER = CommandParser(
    "dashboard",
    "Set up a Weights & Biases workspace for what `mlprank experiment --wandb` and `mlprank tune` logged: accuracy "
    "against amount by measure, the latency front, parallel coordinates and parameter importance of tuning. Offline it "
    "prints what it would create.",
    "mlprank dashboard --project mlprank",
)
PARSER.add("project", "NAME", "the project; default mlprank", default="mlprank")
PARSER.add("entity", "NAME", "user or team; default: that of the login")
PARSER.add("name", "NAME", "the workspace's name; default mlprank", default="mlprank")
PARSER.add("dry_run", text="print what would be created", action="store_true")


def main(argv: list[str]) -> int:
    """Run `mlprank dashboard`."""
    arguments = PARSER.parse_args(argv)
    from mlprank.report.wandb_runs import build_workspace, describe_workspace
    from mlprank.training.loggers import reason_for_offline

    mode = os.environ.get("WANDB_MODE")
    reason = f"WANDB_MODE={mode}" if mode in ("offline", "disabled", "dryrun") else reason_for_offline()
    reason = "--dry-run" if arguments.dry_run else reason
    entity = arguments.entity or os.environ.get("WANDB_ENTITY") or ("your account" if reason else None)
    import wandb

    entity = entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("W&B names no default entity for this login; give --entity")
    workspace = build_workspace(entity=entity, project=arguments.project, name=arguments.name)
    if reason:
        place = f"{workspace.entity}/{workspace.project}"
        print(f'{reason}: nothing is sent. The workspace "{workspace.name}" of {place} would hold:')
        print(*describe_workspace(workspace), sep="\n")
        return 0
    try:
        workspace.save()
    except wandb.errors.Error as error:
        raise ValueError(
            f"W&B did not take the workspace of {workspace.entity}/{workspace.project}: {error}; does the project "
            "exist and may you write to it?"
        ) from error
    print(workspace.url)
    return 0
