"""The command line: a table of commands; what a command needs is imported when it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from mlprank.utils.errors import INTERRUPTED, USER_ERRORS, WRONG_INPUT, did_you_mean


class Command(NamedTuple):
    """A command of the program: "module:function" takes the arguments and returns the exit code."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "fit": Command("mlprank.cli.fit:main", "train a network; with a PruningCallback, prune it at the end"),
    "validate": Command("mlprank.cli.fit:main", "accuracy of a checkpoint on the validation split"),
    "test": Command("mlprank.cli.fit:main", "accuracy of a checkpoint, dense or pruned, on the test split"),
    "predict": Command("mlprank.cli.fit:main", "class and probability of every test image, as a CSV file"),
    "prune": Command("mlprank.cli.prune:main", "prune a checkpoint without training"),
    "shrink": Command("mlprank.cli.shrink:main", "find the smallest network that keeps a budget, such as half a point"),
    "tune": Command("mlprank.cli.tune:main", "search hyper-parameters over a grid of training runs"),
    "experiment": Command(
        "mlprank.cli.experiment:main", "compare measures, methods and amounts over a grid of prunings"
    ),
    "report": Command("mlprank.cli.report:main", "tables and pictures of an experiment"),
    "export": Command("mlprank.cli.export:main", "write a network as ONNX or as a torch.export program"),
    "bench": Command("mlprank.cli.bench:main", "measure the speed of a network, dense against pruned"),
    "dashboard": Command("mlprank.cli.dashboard:main", "set up a Weights & Biases workspace for the results"),
}

_HELP = """\
mlprank {version}: train image classifiers and take their least central neurons out for real.

A network is read as a graph of neurons, the neurons are ranked by weighted PageRank on calibration data, and
the least central ones leave: what remains is a narrower network that computes the same function as the masked one.

usage: mlprank COMMAND [options]        mlprank COMMAND --help lists a command's options

commands:
{commands}

examples:
  mlprank fit --config configs/quickstart.yaml
      trains a small network on the bundled digits, prunes half of its neurons and shows what that changed
  mlprank prune --ckpt_path runs/quickstart/001/checkpoints/best.ckpt --amount 0.7
      prunes the trained network again, harder, without training

options: --help, --version        MLPRANK_TRACEBACK=1 shows where an error was raised
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command and its options; None reads the command line.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C, or what the command returned.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        commands = "\n".join(f"  {name:<11} {command.help}" for name, command in COMMANDS.items())
        print(_HELP.format(version=version("mlprank"), commands=commands), end="")
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"mlprank {version('mlprank')}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"mlprank: error: there is no command {name!r}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        print(f"mlprank: the commands are {', '.join(COMMANDS)}; see mlprank --help", file=sys.stderr)
        return WRONG_INPUT
    try:
        return _run(name, arguments[1:])
    except KeyboardInterrupt as interrupt:
        print(f"mlprank {name}: interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_INPUT
    except USER_ERRORS as error:
        if os.environ.get("MLPRANK_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"mlprank {name}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return WRONG_INPUT


def _run(name: str, arguments: list[str]) -> int:
    """Import the command's module and call its function; lightning's commands share one and get their name first."""
    module, _, function = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), function)
    shared = sum(other.target == COMMANDS[name].target for other in COMMANDS.values()) > 1
    code: int | None = command([name, *arguments] if shared else arguments)
    return code or 0
