"""`mlprank completion`: a script that completes commands and options in bash or zsh.

The script is static. What asks the program at every Tab, as argcomplete does, imports torch at every Tab.
"""

from importlib import import_module

from mlprank.cli import COMMANDS
from mlprank.cli.configs import known_configs
from mlprank.cli.help import HELP, help_parser
from mlprank.cli.vocabulary import LIGHTNING, CommandParser, words_of

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
PARSER = CommandParser(
    "completion",
    "Print a script that completes commands, options and the names of configs.",
    "mlprank completion bash >> ~/.bashrc",
)
PARSER.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")


def main(argv: list[str]) -> int:
    """Print the script, which is for bash; zsh reads it, too."""
    if PARSER.parse_args(argv).shell == "zsh":
        print("autoload -Uz bashcompinit && bashcompinit")
    cases = [f'      {command}) words="{" ".join(options_of(command))}";;' for command in COMMANDS]
    configs, commands = " ".join(known_configs()), " ".join([*COMMANDS, "--help", "--version"])
    print(_SCRIPT.format(commands=commands, configs=configs, cases="\n".join(cases)), end="")
    return 0


def options_of(command: str) -> list[str]:
    """Return every option of a command, with dashes."""
    plain = help_parser(command) if command in HELP else import_module(f"mlprank.cli.{command}").PARSER
    names = [*words_of(command), *(option[2:] for option in plain._option_string_actions if option[:2] == "--")]
    if command in LIGHTNING:
        from mlprank.training.parser import trainer_parser

        parser = trainer_parser("fit" if command == "tune" else command).arguments
        names += [action.dest for action in parser._actions if "." in action.dest]
    return [f"--{name}" for name in dict.fromkeys(names)]
