"""`mlprank completion`: a script that completes commands and options in bash or zsh.

The script is static. What asks the program at every Tab, as argcomplete does, imports torch at every Tab.
"""

from __future__ import annotations

from mlprank.cli.configs import described
from mlprank.cli.vocabulary import HELP, words_of
from mlprank.utils.errors import OptionError, did_you_mean

_SHELLS = ("bash", "zsh")
_USAGE = """\
mlprank completion SHELL

Print a script that completes commands, options and the names of configs.

examples:
  mlprank completion bash >> ~/.bashrc
  mlprank completion zsh >> ~/.zshrc
"""
_SCRIPT = """\
_mlprank() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  elif [ "$previous" = "--config" ] || [ "$previous" = "-c" ]; then
    words="{configs}"
  elif [ "${{current#-}}" != "$current" ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o bashdefault -o default -F _mlprank mlprank
"""


def main(argv: list[str]) -> int:
    """Print the script.

    Args:
        argv: The shell.

    Returns:
        The exit code, 0.

    Raises:
        OptionError: If there is no script for that shell.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(_USAGE, end="")
        return 0
    if argv[0] not in _SHELLS:
        raise OptionError(f"shell {argv[0]!r} is not one of {', '.join(_SHELLS)}{did_you_mean(argv[0], _SHELLS)}")
    prelude = "autoload -Uz bashcompinit && bashcompinit\n" if argv[0] == "zsh" else ""
    print(prelude + script(), end="")
    return 0


def script() -> str:
    """Return the script for bash; zsh reads it, too."""
    from mlprank.cli import COMMANDS

    cases = [f'      {command}) words="{" ".join(options_of(command))}";;' for command in COMMANDS]
    names = " ".join(name for name, _ in described())
    return _SCRIPT.format(commands=" ".join([*COMMANDS, "--help", "--version"]), configs=names, cases="\n".join(cases))


def options_of(command: str) -> list[str]:
    """Return every option of a command, with dashes."""
    options = dict.fromkeys(f"--{word}" for word in words_of(command))
    if command in HELP:
        options |= dict.fromkeys(f"--{name}" for _, group in HELP[command].groups for name, _ in group)
    if command in ("fit", "validate", "test", "predict", "tune"):
        from mlprank.training.parser import trainer_parser

        parser = trainer_parser("fit" if command == "tune" else command)
        options |= dict.fromkeys(f"--{action.dest}" for action in parser.arguments._actions if "." in action.dest)
    return [*options, "--help"]
