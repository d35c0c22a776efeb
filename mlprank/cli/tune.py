"""`mlprank tune`: a grid search over training runs."""

from __future__ import annotations

import logging
import warnings

_HELP = """\
mlprank tune: train every point of a grid, and find the best by validation accuracy.

usage: mlprank tune --config CONFIG --grid.OPTION "[VALUE, VALUE, …]" … --tune.out DIRECTORY [options of mlprank fit]

OPTION is any option of `mlprank fit`, such as model.optimizer.init_args.lr. A config may hold `grid:` and `tune:` too.
The same command goes on after an interruption; more values extend the grid.

example:
  mlprank tune --config configs/quickstart.yaml --grid.model.optimizer.init_args.lr "[0.01, 0.003, 0.001]" \\
    --grid.model.optimizer.init_args.weight_decay "[1e-4, 1e-6]" --tune.out runs/quickstart_grid

"""


def main(argv: list[str]) -> int:
    """Run the search.

    Args:
        argv: The options.

    Returns:
        0 where every trial has ended, 1 where some failed.

    Raises:
        ValueError: If something that the user gave cannot be used; other errors of the user pass as they are.
    """
    from mlprank.tuning.grid import option_parser

    if not argv or argv[0] in ("--help", "-h"):
        print(_HELP + option_parser().format_help().partition("\n\n")[2])
        return 0
    for pattern in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from mlprank.tuning.run import tune
    from mlprank.utils.files import BusyError

    for name in ("lightning.pytorch", "lightning.fabric"):  # importing lightning sets them too
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return tune(argv)
    except (MisconfigurationException, BusyError) as error:
        raise ValueError(str(error)) from error
