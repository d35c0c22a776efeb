"""`mlprank completion`: a script that completes commands and options in bash or zsh.

The script is static. What asks the program at every Tab, as argcomplete does, imports torch at every Tab.
"""

import re
from importlib import import_module

from mlprank.cli import COMMANDS
from mlprank.cli.configs import described
from mlprank.cli.help import HELP
from mlprank.cli.vocabulary import LIGHTNING, CommandParser, words_of

_SHELLS = ("bash", "zsh")
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
    """Print the script."""
    shell = command_parser().parse_args(argv).shell
    print(("autoload -Uz bashcompinit && bashcompinit\n" if shell == "zsh" else "") + script(), end="")
    return 0


def command_parser() -> CommandParser:
    """Describe the command's arguments."""
    about = "Print a script that completes commands, options and the names of configs."
    parser = CommandParser("completion", about, "mlprank completion bash >> ~/.bashrc")
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=" or ".join(_SHELLS))
    return parser


def script() -> str:
    """Return the script for bash; zsh reads it, too."""
    cases = [f'      {command}) words="{" ".join(options_of(command))}";;' for command in COMMANDS]
    names = " ".join(name for name, _ in described())
    return _SCRIPT.format(commands=" ".join([*COMMANDS, "--help", "--version"]), configs=names, cases="\n".join(cases))


def options_of(command: str) -> list[str]:
    """Return every option of a command, with dashes."""
    options = [f"--{word}" for word in words_of(command)]
    if command in HELP:
        options += [
            f"--{name}" for names in HELP[command].groups.values() for name in re.split(r"=\S*|\s", names) if name
        ]
    if command in LIGHTNING:
        from mlprank.training.parser import trainer_parser

        parser = trainer_parser("fit" if command == "tune" else command).arguments
        options += [f"--{action.dest}" for action in parser._actions if "." in action.dest]
    elif command not in HELP:
        parser = import_module(COMMANDS[command].target.partition(":")[0]).command_parser()
        options += [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    return [*dict.fromkeys(options), "--help"]
