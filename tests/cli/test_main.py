import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mlprank.cli import COMMANDS, Command, main


def test_help_teaches_every_command_without_importing_torch() -> None:
    code = "import sys; from mlprank.cli import main; main(sys.argv[1:]); main([]); main(['--version']);"
    code += "print(sorted({'torch', 'lightning', 'numpy', 'jsonargparse'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", done.stdout, re.MULTILINE), name
    assert "mlprank fit --config quickstart" in done.stdout
    assert re.search(r"^mlprank \d+\.\d+", done.stdout, re.MULTILINE)


def test_python_m_mlprank_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "mlprank", "fitt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no command 'fitt'; did you mean 'fit'?" in done.stderr
    assert done.stdout == ""


_FIRST_WORDS = """
import io, os, sys
from mlprank.cli import main

class Terminal(io.StringIO):
    def isatty(self):
        return True

    def write(self, text):
        print(text, sorted({"torch", "lightning", "numpy", "wandb", "altair"} & set(sys.modules)), flush=True)
        os._exit(0)

sys.stderr = Terminal()
main([sys.argv[1], "x"])
"""


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.needs])
def test_a_terminal_is_told_that_a_command_loads_before_anything_heavy_does(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", _FIRST_WORDS, name], capture_output=True, text=True, check=True)
    assert done.stdout == f"mlprank {name}: loading []\n"


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (ValueError("amount=2 is wrong"), 2, "mlprank prune: error: amount=2 is wrong\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "mlprank prune: error: [Errno 13] Permission denied: 'x'\n"),
        (ModuleNotFoundError("install mlprank[tune]"), 2, "mlprank prune: error: install mlprank[tune]\n"),
        (KeyboardInterrupt("last.ckpt is kept"), 130, "mlprank prune: interrupted; last.ckpt is kept\n"),
        (KeyboardInterrupt(), 130, "mlprank prune: interrupted; nothing was written\n"),
    ],
)
def test_errors_of_the_user_are_one_line_and_an_exit_code(
    raised: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(argv: list[str]) -> int:
        raise raised

    monkeypatch.setitem(COMMANDS, "prune", Command("mlprank.utils.errors", ""))
    monkeypatch.setattr("mlprank.utils.errors.prune", fails, raising=False)
    assert main(["prune"]) == code
    assert capsys.readouterr() == ("", text)
    monkeypatch.setenv("MLPRANK_TRACEBACK", "1")
    main(["prune"])
    assert ("Traceback" in capsys.readouterr().err) == (code == 2)


def test_warnings_are_one_line_without_the_code_that_they_came_from() -> None:
    code = "import sys, warnings; from mlprank import cli; from mlprank.utils import errors\n"
    code += "errors.prune = lambda argv: warnings.warn('look here', stacklevel=1)\n"
    code += "cli.COMMANDS['prune'] = cli.Command('mlprank.utils.errors', ''); sys.exit(cli.main(['prune']))"
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stderr
        for env in ({}, {"MLPRANK_TRACEBACK": "1"})
    ]
    assert said[0] == "mlprank prune: warning: look here\n"
    assert "UserWarning: look here" in said[1]


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise AssertionError("ours")

    monkeypatch.setitem(COMMANDS, "prune", Command("mlprank.utils.errors", ""))
    monkeypatch.setattr("mlprank.utils.errors.prune", fails, raising=False)
    with pytest.raises(AssertionError, match="ours"):
        main(["prune"])


def test_a_command_gets_its_options_and_its_exit_code_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def command(answer: int | None) -> Callable[[list[str]], Any]:
        return lambda argv: (seen.append(argv), answer)[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr("mlprank.utils.errors.prune", command(5), raising=False)
    monkeypatch.setitem(COMMANDS, "prune", Command("mlprank.utils.errors", ""))
    assert main(["prune", "--amount", "0.5"]) == 5
    monkeypatch.setattr("mlprank.utils.errors.prune", command(None))
    assert main(["prune"]) == 0
    assert seen == [["--amount", "0.5"], []]
