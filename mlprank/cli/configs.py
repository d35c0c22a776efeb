"""`mlprank configs` and `mlprank completion`: the configs that come with mlprank, and a script that completes names.

The script is static. What asks the program at every Tab, as argcomplete does, imports torch at every Tab.
"""

import textwrap
from importlib import import_module
from pathlib import Path

from mlprank.cli.vocabulary import HELP, LIGHTNING, CommandParser, help_parser, words_of
from mlprank.utils.files import find_config, known_configs, write_whole

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
CONFIGS = CommandParser(
    "configs",
    "List the configs that come with mlprank, or copy one into the current folder, to be changed; `--config NAME` "
    "finds them on every command.",
    "mlprank configs quickstart --out mine.yaml",
)
CONFIGS.add_argument("name", nargs="?", metavar="NAME", help="the config to copy; without it, all are listed")
CONFIGS.add("out", text="where to copy it to; default: the current folder")

COMPLETION = CommandParser(
    "completion",
    "Print a script that completes commands, options and the names of configs.",
    "mlprank completion bash >> ~/.bashrc",
)
COMPLETION.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")


def configs(argv: list[str]) -> int:
    """List the configs, or copy one."""
    arguments = CONFIGS.parse_args(argv)
    if arguments.name is None:
        for name, path in known_configs().items():  # each with the first line that it says of itself
            about = path.read_text().partition("\n")[0].lstrip("# ")
            print(name, textwrap.fill(about, 76, initial_indent="    ", subsequent_indent="    "), sep="\n")
        print("\nmlprank configs NAME copies one; --config NAME uses it as it is")
        return 0
    source = find_config(arguments.name)
    target = Path(arguments.out or source.name)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another file with --out")
    write_whole(target, source.read_text())
    print(target)
    return 0


def completion(argv: list[str]) -> int:
    """Print the script, which is for bash; zsh reads it, too."""
    from mlprank.cli import COMMANDS

    if COMPLETION.parse_args(argv).shell == "zsh":
        print("autoload -Uz bashcompinit && bashcompinit")
    cases = []
    for command, (module, *_) in COMMANDS.items():
        plain = help_parser(command) if command in HELP else getattr(import_module(module), command.upper())
        names = [*words_of(command), *(option[2:] for option in plain._option_string_actions if option[:2] == "--")]
        if command in LIGHTNING:
            from mlprank.training.parser import command_parser

            parser = command_parser("fit" if command == "tune" else command)
            names += [action.dest for action in parser._actions if "." in action.dest]
        options = " ".join(f"--{name}" for name in dict.fromkeys(names))
        cases.append(f'      {command}) words="{options}";;')
    configs, commands = " ".join(known_configs()), " ".join([*COMMANDS, "--help", "--version"])
    print(_SCRIPT.format(commands=commands, configs=configs, cases="\n".join(cases)), end="")
    return 0
