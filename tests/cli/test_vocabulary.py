"""One word for one thing on every command, and help that shows what people use."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mlprank.callbacks import PruningCallback
from mlprank.cli import COMMANDS, prune
from mlprank.cli.vocabulary import (
    _ORIGINAL,
    HELP,
    WORDS,
    CommandParser,
    help_parser,
    listed,
    translate,
    words_of,
)
from mlprank.training.parser import command_parser
from mlprank.utils.errors import OptionError

DOCS = Path(__file__).parents[2] / "docs"
LIGHTNING = ("fit", "tune", "validate", "test", "predict")


def _plain_parser(command: str) -> CommandParser:
    """The parser of a command that needs no classes."""
    parser: CommandParser = getattr(import_module(COMMANDS[command].module), command.upper())
    return parser


def _options_of(command: str) -> dict[str, Any]:
    """What the command's parser has, with its defaults."""
    if command in LIGHTNING:
        parser = command_parser("fit" if command == "tune" else command)
    elif command in ("prune", "shrink"):
        parser = command_parser(command, add_options=prune.add_options if command == "prune" else prune.add_budgets)
    else:
        parser = _plain_parser(command)
        return {option.lstrip("-"): a.default for a in parser._actions for option in a.option_strings}
    return {action.dest: action.default for action in parser._actions}


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("tune", "configs")])
def test_every_word_stands_for_an_option_that_the_command_has(command: str) -> None:
    options = _options_of(command)
    recipe = _options_of("prune")
    for word, option in words_of(command).items():
        known = option in options or option.startswith(("data.", "model.optimizer.")) or option in ("model", "config")
        assert known or (command == "fit" and option in recipe), word


@pytest.mark.parametrize("command", HELP)
def test_help_fits_on_a_screen_or_two_and_into_80_columns(command: str) -> None:
    lines = help_parser(command).format_help().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    assert "examples:" in lines
    assert not any("subclass" in line or "class_path" in line for line in lines)


@pytest.mark.parametrize("command", ["fit", "test", "prune", "shrink"])
def test_the_defaults_of_help_are_those_of_the_parser(command: str) -> None:
    options = _options_of(command)
    text = " ".join(help_parser(command).format_help().split())
    shown = dict(re.findall(r"--(\w+) [A-Z]+ [^-]*?\(default ([^)]+)\)", text))
    assert len(shown) >= 3
    checked = ("accelerator", "devices", "seed", "amount", "num_samples", "round_to", "split", "measure", "refine")
    for word in checked:
        option = words_of(command).get(word, word)
        if option in options and word in shown:
            assert str(options[option]) == shown[word], option


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in HELP])
def test_the_help_of_plain_commands_explains_every_option_within_80_columns(
    command: str, mlprank: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        mlprank(command, "--help")
    text = capfd.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"example:\n  mlprank {command} " in text
    assert not [action.dest for action in _plain_parser(command)._actions if not action.help]


def test_help_all_shows_every_option_without_a_list_of_classes(mlprank: Callable[..., Any], capfd: Any) -> None:
    for command in ("fit", "prune"):
        with pytest.raises(SystemExit, match="0"):
            mlprank(command, "--help", "all")
        text = capfd.readouterr().out
        options = set(re.findall(r"^--([\w.]+)", text, re.MULTILINE))
        assert {"fit": "trainer.gradient_clip_algorithm", "prune": "min_neurons"}[command] in options
        assert len(options) >= {"fit": 50, "prune": 15}[command]
        assert "known subclasses" not in text


def test_help_is_there_within_a_second_of_processor_time_and_without_torch() -> None:
    code = "import sys, time; from mlprank.cli import main; main(['fit', '--help']); main(['configs']);"
    code += "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)), time.process_time() < 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[] True\n")


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("fit", "--epochs 3 --lr=0.1 --batch-size "
            "64", "--trainer.max_epochs 3 --model.optimizer.lr=0.1 --data.batch_size 64"),
        ("fit", "--opt sgd_nesterov --lr-scheduler steplr",
         "--model.optimizer=SGD --model.optimizer.momentum=0.9 --model.optimizer.nesterov=true "
         "--model.lr_scheduler=StepLR"),
        ("fit", "--amp --output-dir runs/x --resume last",
         "--trainer.precision=bf16-mixed --trainer.default_root_dir runs/x --ckpt_path last"),
        ("test", "--device cpu --checkpoint a.ckpt", "--trainer.accelerator cpu --ckpt_path a.ckpt"),
        ("prune", "--device cpu --measure_name norm --out_path o", "--accelerator cpu --measure norm --out o"),
        ("tune", "--grid.lr [1] --grid.model.optimizer.lr [1] --out o",
         "--grid.model.optimizer.lr [1] --grid.model.optimizer.lr [1] --tune.out o"),
        ("experiment", "--measure-name norm --model_name TwoLayerMLP --calibration-samples 64 --device cpu "
            "--checkpoint a",
         "--measure norm --model TwoLayerMLP --num_samples 64 --accelerator cpu --ckpt_path a"),
        ("export", "--output o.onnx --checkpoint c", "--out o.onnx --ckpt_path c"),
        ("bench", "--json b.json", "--out b.json"),
        ("report", "--output r --no-png", "--out r --no_png"),
    ],
)  # fmt: skip
def test_other_spellings_mean_the_same(command: str, typed: str, meant: str) -> None:
    assert translate(command, typed.split()) == meant.split()
    assert translate(command, translate(command, typed.split())) == meant.split(), "what was said is not said again"


@pytest.mark.parametrize(
    ("command", "typed", "message"),
    [
        ("fit", "--acelerator=cpu", "there is no option '--acelerator'; did you mean '--accelerator'?"),
        ("fit", "--workers=4", "--workers is not needed: batches are indexed in memory"),
        ("fit", "--test-only", "--test-only is a command: mlprank test"),
        ("export", "--formt=onnx", "there is no option '--formt'; did you mean '--format'?"),
        ("bench", "a b --repeat=3", "there is no option '--repeat'; did you mean '--repeats'?"),
        ("bench", "a", "compares two checkpoints, dense and pruned, and 1 are given"),
        ("export", "--input_shape=[1,x] a", "'[1,x]' is not a list such as [1,2,3]"),
        ("completion", "fish", "SHELL: 'fish' is not one of bash, zsh; did you mean 'zsh'?"),
        ("report", "a --pictures latncy", "--pictures: 'latncy' is not one of accuracy, differences, latency,"),
        ("report", "a --pictures latncy", "; did you mean 'latency'?"),
        ("report", "a --formats pgn", "--formats: 'pgn' is not one of png, svg, pdf; did you mean 'png'?"),
        ("experiment", "--engine lokal", "--engine: 'lokal' is not one of local, ray; did you mean 'local'?"),
        ("export", "--format onx a", "format='onx' is unknown; did you mean 'onnx'?"),
        ("configs", "quikstart", "did you mean 'quickstart'?"),
        ("configs", "--ot=a", "there is no option '--ot'; did you mean '--out'?"),
        ("test", "--ckpt_pth=a", "there is no option '--ckpt_pth'; did you mean '--ckpt_path'?"),
        ("prune", "--ckpt_path x --mesure=norm", "there is no option '--mesure'; did you mean '--measure'?"),
        ("shrink", "--ckpt_path x --max_dorp 1", "there is no option '--max_dorp'; did you mean '--max_drop'?"),
        ("fit", "--lerning-rate 0.1", "there is no option '--lerning-rate'; did you mean '--learning_rate'?"),
        ("fit", "--modle.widths [8]", "there is no option '--modle.widths'; did you mean '--model.widths'?"),
        ("tune", "--gird.lr [1]", "there is no option '--gird.lr'; did you mean '--grid.lr'?"),
        ("tune", "--config quickstart --grid.lr [1] --tune.engin local", "did you mean 'tune.engine'?"),
        ("report", "a --picturs", "there is no option '--picturs'; did you mean '--pictures'?"),
        ("experiment", "--modl MLP", "there is no option '--modl'; did you mean '--model'?"),
        ("dashboard", "--projet=x", "did you mean '--project'?"),
    ],
)
def test_every_typo_is_answered_with_the_nearest_option(
    command: str, typed: str, message: str, mlprank: Callable[..., Any]
) -> None:
    result = mlprank(command, *typed.split())
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


@pytest.mark.parametrize("command", ["fit", "test", "prune", "shrink"])
def test_no_option_that_a_command_has_is_taken_for_a_typo(command: str) -> None:
    pruning = inspect.signature(PruningCallback).parameters if command == "fit" else ()
    for option in (*_options_of(command), *pruning):
        assert translate(command, [f"--{option}", "x"])


def render_table() -> str:
    """Return the vocabulary as a Markdown table: every word, what it means, other spellings, and who understands it."""
    rows = ["| option | meaning | other spellings | commands |", "|---|---|---|---|"]
    for name, word in WORDS.items():
        also = ", ".join(f"`--{spelling}`" for spelling in word.also)
        rows.append(f"| `--{name} {word.value}` | {word.text} | {also} | {', '.join(word.commands)} |")
    rows += ["", "The spellings of the original's training script, on fit, tune, validate, test and predict:", ""]
    rows += ["| original | here |", "|---|---|"]
    for spelling, meant in _ORIGINAL.items():
        rows.append(f"| `--{spelling.replace('_', '-')}` | {f'`{meant}`' if meant.startswith('--') else meant} |")
    return "\n".join(rows) + "\n"


def test_the_documentation_has_the_table() -> None:
    assert render_table() in (DOCS / "options.md").read_text(), "render_table() is the table"


def test_completion_knows_every_command_option_and_config(mlprank: Callable[..., Any]) -> None:
    script = mlprank("completion", "bash").out
    assert all(command in script for command in COMMANDS)
    (options,) = re.findall(r'^ *fit\) words="(.*)";;$', script, re.MULTILINE)
    assert {"--ckpt_path", "--trainer.max_epochs", "--amount"} <= set(options.split())
    asked = 'COMP_WORDS=(mlprank prune --amo); COMP_CWORD=2; _mlprank; echo "${COMPREPLY[@]}";'
    asked += 'COMP_WORDS=(mlprank fit --config qui); COMP_CWORD=3; _mlprank; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script + asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["--amount", "quickstart"]
    assert mlprank("completion", "zsh").out.startswith("autoload -Uz bashcompinit")


def test_a_wrong_value_names_the_option() -> None:
    parser = CommandParser("bench", "Compares.", "mlprank bench a b")
    parser.add_argument("--threads", type=int)
    with pytest.raises(OptionError, match=r"--threads: invalid int value: 'x'"):
        parser.parse_args(["--threads", "x"])


def test_a_list_is_read_with_or_without_brackets_and_spaces() -> None:
    assert listed(int)("[1,28,28]") == listed(int)("1, 28, 28") == [1, 28, 28]
