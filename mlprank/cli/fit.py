"""`mlprank fit`, `validate`, `test` and `predict`."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run one of the four commands.

    Args:
        argv: The command and its options.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an option, a config or a file cannot be used; other errors of the user pass as they are.
    """
    from mlprank.training.parser import parse
    from mlprank.training.run import quieten, run

    quieten()
    run(parse(argv[0], argv[1:]))
    return 0
