"""The command line: a table of commands; what a command needs is imported when it runs."""

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from mlprank.cli.vocabulary import HELP, help_parser, translate
from mlprank.utils.errors import INTERRUPTED, WRONG_INPUT, did_you_mean
from mlprank.utils.files import BusyError


class Command(NamedTuple):
    """A command of the program: a function of its name in a module, or a command of Lightning's."""

    module: str
    help: str
    needs: str = ""  # what takes seconds to import


_TRAINING = "mlprank.training.run"
_LIGHTNING = "lightning.fabric.utilities.exceptions"
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, BusyError)
"""What wrong input raises anywhere in the package; anything else is a fault of ours and shows its traceback."""
COMMANDS: dict[str, Command] = {
    "fit": Command(_TRAINING, "train a network; with a PruningCallback, prune it at the end", _TRAINING),
    "validate": Command(_TRAINING, "accuracy of a checkpoint on the validation split", _TRAINING),
    "test": Command(_TRAINING, "accuracy of a checkpoint, dense or pruned, on the test split", _TRAINING),
    "predict": Command(_TRAINING, "class and probability of every test image, as a CSV file", _TRAINING),
    "prune": Command("mlprank.cli.prune", "prune a checkpoint without training", _TRAINING),
    "shrink": Command("mlprank.cli.prune", "find the smallest network that keeps a budget", _TRAINING),
    "tune": Command("mlprank.tuning.run", "search hyper-parameters over a grid of training runs", _TRAINING),
    "experiment": Command(
        "mlprank.cli.experiment", "compare measures, methods and amounts over a grid of prunings", "torch"
    ),
    "report": Command("mlprank.cli.report", "tables and pictures of an experiment", "mlprank.report"),
    "export": Command("mlprank.cli.networks", "write a network as ONNX or as a torch.export program", "torch"),
    "bench": Command("mlprank.cli.networks", "measure the speed of a network, dense against pruned", "torch"),
    "dashboard": Command("mlprank.cli.experiment", "set up a Weights & Biases workspace for the results", "wandb"),
    "configs": Command("mlprank.cli.configs", "list the configs that come with mlprank, or copy one"),
    "completion": Command("mlprank.cli.configs", "print a script that completes commands in bash or zsh", _TRAINING),
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
  mlprank prune --config quickstart --ckpt_path best --amount 0.7
      prunes the trained network again, harder, without training

mlprank COMMAND --help lists the options that people use, --help all every one.
options: --help, --version
MLPRANK_TRACEBACK=1 shows where an error or a warning came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with its options, by default those of the command line.

    Returns:
        The exit code: 0, 2 for input that cannot be used, 130 after Ctrl-C, or what the command returned.
    """
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        commands = "\n".join(f"  {name:<11} {command.help}" for name, command in COMMANDS.items())
        print(_HELP.format(version=version("mlprank"), commands=commands), end="")
        return 0
    if name in ("--version", "-V"):
        print(f"mlprank {version('mlprank')}")
        return 0
    if name not in COMMANDS:
        print(f"mlprank: error: there is no command {name!r}{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        print(f"mlprank: the commands are {', '.join(COMMANDS)}; see mlprank --help", file=sys.stderr)
        return WRONG_INPUT
    shows_places, usual = os.environ.get("MLPRANK_TRACEBACK", "0") not in ("", "0"), warnings.formatwarning
    if not shows_places:  # warnings are said as errors are, without the line of code that they came from
        warnings.formatwarning = lambda message, *_, **__: f"mlprank {name}: warning: {message}\n"
    try:
        return _run(name, arguments)
    except KeyboardInterrupt as interrupt:
        print(f"mlprank {name}: interrupted; {str(interrupt) or 'nothing was written'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG_INPUT
    # Lightning, where it was imported, has an error of its own for options that do not fit together.
    except (*_USER_ERRORS, getattr(sys.modules.get(_LIGHTNING), "MisconfigurationException", BusyError)) as error:
        if shows_places:
            traceback.print_exc()
        print(f"mlprank {name}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return WRONG_INPUT
    finally:
        warnings.formatwarning = usual


def _run(name: str, arguments: list[str]) -> int:
    """Import the command's module and call its function; the commands that share one get their name first."""
    command = COMMANDS[name]
    asked = bool({"-h", "--help"} & set(arguments))
    if asked and name in HELP and ("all" not in arguments or name == "tune"):
        print(help_parser(name).format_help(), end="")
        if "all" in arguments:  # tune's own options; the others are those of fit
            from mlprank.training.parser import full_help
            from mlprank.tuning.grid import option_parser

            print(f"\n{full_help(option_parser())}", end="")
        return 0
    if asked:
        arguments = [*(word for word in arguments if word not in ("-h", "--help", "all")), "--help"]
    # Modules in the current folder can be imported where an option names them, after all that is installed.
    here = os.getcwd()
    sys.path[:] = [*(path for path in sys.path if path not in ("", here)), here]
    arguments = translate(name, arguments)
    if command.needs and not (asked and name not in HELP):
        shown = sys.stderr.isatty()
        print(f"mlprank {name}: loading" if shown else "", end="", flush=True, file=sys.stderr)
        try:
            importlib.import_module(command.needs)
        finally:
            print("\r\x1b[2K" if shown else "", end="", flush=True, file=sys.stderr)
    if command.needs == _TRAINING:
        from mlprank.training.run import quieten

        quieten()
    module = importlib.import_module(command.module)
    code = module.main([name, *arguments]) if command.module == _TRAINING else getattr(module, name)(arguments)
    return int(code or 0)
