"""The command line: a table of commands; what a command needs is imported when it runs."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple

from mlprank.cli.configs import with_files
from mlprank.cli.vocabulary import HELP, render_help, translate
from mlprank.utils.errors import INTERRUPTED, USER_ERRORS, WRONG_INPUT, did_you_mean
from mlprank.utils.files import BusyError


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        target: "module:function"; the function takes the arguments and returns the exit code.
        help: What it does, in a few words.
        needs: A module that takes seconds to import, and is imported before the function is called.
    """

    target: str
    help: str
    needs: str = ""


_RUN = "mlprank.training.run"
COMMANDS: dict[str, Command] = {
    "fit": Command("mlprank.cli.fit:main", "train a network; with a PruningCallback, prune it at the end", _RUN),
    "validate": Command("mlprank.cli.fit:main", "accuracy of a checkpoint on the validation split", _RUN),
    "test": Command("mlprank.cli.fit:main", "accuracy of a checkpoint, dense or pruned, on the test split", _RUN),
    "predict": Command("mlprank.cli.fit:main", "class and probability of every test image, as a CSV file", _RUN),
    "prune": Command("mlprank.cli.prune:main", "prune a checkpoint without training", _RUN),
    "shrink": Command(
        "mlprank.cli.shrink:main", "find the smallest network that keeps a budget, such as half a point", _RUN
    ),
    "tune": Command("mlprank.cli.tune:main", "search hyper-parameters over a grid of training runs", _RUN),
    "experiment": Command(
        "mlprank.cli.experiment:main", "compare measures, methods and amounts over a grid of prunings"
    ),
    "report": Command("mlprank.cli.report:main", "tables and pictures of an experiment"),
    "export": Command("mlprank.cli.export:main", "write a network as ONNX or as a torch.export program", "torch"),
    "bench": Command("mlprank.cli.bench:main", "measure the speed of a network, dense against pruned", "torch"),
    "dashboard": Command("mlprank.cli.dashboard:main", "set up a Weights & Biases workspace for the results"),
    "configs": Command("mlprank.cli.configs:main", "list the configs that come with mlprank, or copy one"),
    "completion": Command("mlprank.cli.completion:main", "print a script that completes commands in bash or zsh"),
}

_HELP = """\
mlprank {version}: train image classifiers and take their least central neurons
out for real.

A network is read as a graph of neurons, the neurons are ranked by weighted
PageRank on calibration data, and the least central ones leave: what remains is
a narrower network that computes the same function as the masked one.

usage: mlprank COMMAND [options]

commands:
{commands}

examples:
  mlprank fit --config quickstart
      trains a small network on the bundled digits, prunes half of its neurons
      and shows what that changed
  mlprank prune --ckpt_path runs/quickstart/001/checkpoints/best.ckpt --amount 0.7
      prunes the trained network again, harder, without training

mlprank COMMAND --help lists the options that people use, --help all every one.
options: --help, --version
MLPRANK_TRACEBACK=1 shows where an error was raised.
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
    except (*USER_ERRORS, BusyError) as error:
        if os.environ.get("MLPRANK_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"mlprank {name}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return WRONG_INPUT


def _run(name: str, arguments: list[str]) -> int:
    """Import the command's module and call its function; the commands that share one get their name first."""
    if {"-h", "--help"} & set(arguments) and "all" not in arguments and name in HELP:
        print(render_help(name), end="")
        return 0
    if "all" in arguments and {"-h", "--help"} & set(arguments):
        arguments = [argument for argument in arguments if argument not in ("-h", "all")]
        arguments = [*arguments, "--help"] if "--help" not in arguments else arguments
    _find_modules_here()
    arguments = with_files(translate(name, arguments))
    if COMMANDS[name].needs:
        with _saying(f"mlprank {name}: loading torch"):
            importlib.import_module(COMMANDS[name].needs)
    module, _, function = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), function)
    shared = sum(other.target == COMMANDS[name].target for other in COMMANDS.values()) > 1
    code: int | None = command([name, *arguments] if shared else arguments)
    return code or 0


def _find_modules_here() -> None:
    """Let modules in the current folder be imported where an option names them, after all that is installed."""
    here = os.getcwd()
    sys.path[:] = [*(path for path in sys.path if path not in ("", here)), here]


@contextmanager
def _saying(text: str) -> Iterator[None]:
    """Show on a terminal that something is happening, and take it away again."""
    shown = sys.stderr.isatty()
    if shown:
        print(text, end="", flush=True, file=sys.stderr)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[2K", end="", flush=True, file=sys.stderr)
