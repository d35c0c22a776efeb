"""One word for one thing on every command: the options, the original's spellings of them, and the help that shows them."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from mlprank.utils.errors import OptionError, did_you_mean

_TRAIN = ("fit", "tune")
_EVALUATE = ("validate", "test", "predict")
_LIGHTNING = (*_TRAIN, *_EVALUATE)
_PRUNE = ("prune", "shrink")
_DASHED = ("experiment", "report", "dashboard")
"""Commands whose parsers spell options with dashes."""


class Word(NamedTuple):
    """An option that means the same on every command that has it.

    Attributes:
        value: What stands behind it.
        text: What it means.
        means: For each command that has it, what its parser calls it.
        also: Other spellings, the original's among them.
    """

    value: str
    text: str
    means: Mapping[str, str]
    also: tuple[str, ...] = ()


def _on(*groups: tuple[Sequence[str], str]) -> dict[str, str]:
    return {command: option for commands, option in groups for command in commands}


_RECIPE = (*_TRAIN, *_PRUNE)
WORDS: dict[str, Word] = {
    "config": Word(
        "NAME",
        "a config: a file, or a name that `mlprank configs` lists; several are merged",
        _on(((*_LIGHTNING, *_PRUNE, "experiment"), "config")),
    ),
    "ckpt_path": Word(
        "FILE",
        "a checkpoint: a file, or `best` or `last` of the newest run",
        _on((("fit", *_EVALUATE, *_PRUNE, "export", "bench"), "ckpt_path"), (("experiment",), "checkpoint")),
        ("resume", "checkpoint"),
    ),
    "out": Word(
        "PATH",
        "where to write",
        _on(
            (("fit", *_EVALUATE), "trainer.default_root_dir"),
            (("tune",), "tune.out"),
            ((*_PRUNE, "export", "bench", "experiment", "configs"), "out"),
            (("report",), "output"),
        ),
        ("output_dir", "out_path", "output", "json"),
    ),
    "model": Word(
        "CLASS",
        "a network or LightningModule: MLP, or an import path such as my_package.MyModule; its options are --model.NAME",
        _on(((*_LIGHTNING, *_PRUNE, "export", "bench"), "model"), (("experiment",), "model_name")),
        ("model_name",),
    ),
    "data": Word(
        "CLASS",
        "a data module, such as DigitsDataModule or my_package.MyData; its options are --data.NAME",
        _on(((*_LIGHTNING, *_PRUNE), "data"), (("experiment",), "dataset_name")),
        ("dataset_name", "data_name"),
    ),
    "data_dir": Word(
        "DIR",
        "where image files are, or go to; else the environment variable MLPRANK_DATA_DIR",
        _on(((*_LIGHTNING, *_PRUNE), "data.data_dir"), (("experiment",), "data_dir")),
        ("data_path",),
    ),
    "batch_size": Word("N", "samples in a batch", _on(((*_LIGHTNING, "prune"), "data.batch_size"))),
    "epochs": Word("N", "epochs of training", _on((_TRAIN, "trainer.max_epochs")), ("max_epochs",)),
    "optimizer": Word("CLASS", "optimizer, such as Adam, SGD or AdamW", _on((_TRAIN, "model.optimizer"))),
    "lr": Word("X", "learning rate", _on((_TRAIN, "model.optimizer.lr"))),
    "weight_decay": Word("X", "weight decay", _on((_TRAIN, "model.optimizer.weight_decay"))),
    "accelerator": Word(
        "NAME",
        "where to compute: cpu, gpu, mps or auto",
        _on((_LIGHTNING, "trainer.accelerator"), (_PRUNE, "accelerator"), (("experiment",), "device")),
        ("device",),
    ),
    "devices": Word("N", "how many devices", _on((_LIGHTNING, "trainer.devices")), ("world_size",)),
    "precision": Word("NAME", "32, bf16-mixed, 16-mixed, 64", _on((_LIGHTNING, "trainer.precision"))),
    "seed": Word(
        "N",
        "seed of everything that is drawn",
        _on((_LIGHTNING, "seed_everything"), ((*_PRUNE, "experiment"), "seed")),
    ),
    "amount": Word(
        "SHARE",
        "share of neurons to remove, in [0, 1); several give a network each",
        _on(((*_RECIPE, "experiment"), "amount")),
    ),
    "measure": Word(
        "NAME",
        "what scores neurons: weighted_pagerank, modified_pagerank, norm, activation, wanda, reconstruction, random",
        _on((_RECIPE, "measure"), (("experiment",), "measure_name")),
        ("measure_name",),
    ),
    "method": Word(
        "NAME",
        "what turns scores into masks: local or global",
        _on((_RECIPE, "method"), (("experiment",), "method_name")),
        ("method_name",),
    ),
    "compensation": Word(
        "NAME",
        "what a pruned neuron leaves behind: least_squares, constant, mean or zero",
        _on(((*_RECIPE, "experiment"), "compensation")),
    ),
    "graph": Word("NAME", "dag, the true graph, or chain, the published one", _on(((*_RECIPE, "experiment"), "graph"))),
    "num_samples": Word(
        "N",
        "calibration samples",
        _on((_RECIPE, "num_samples"), (("experiment",), "calibration_samples")),
        ("calibration_samples",),
    ),
    "round_to": Word("N", "kept neurons become a multiple of this", _on((_RECIPE, "round_to"))),
    "protect": Word("NAMES", "layers to keep whole, as in [fc1] or ['blocks.*']", _on((_RECIPE, "protect"))),
    "split": Word("NAME", "split that accuracies are shown of: val or test", _on((_PRUNE, "split"))),
    "input_shape": Word("SHAPE", "shape of one sample, such as [3,32,32]", _on((("export", "bench"), "input_shape"))),
}
"""The vocabulary. What is not here is an option of one command, or one of Lightning's with a dot in it."""

_TORCHVISION = {
    "label_smoothing": "model.label_smoothing",
    "norm_weight_decay": "model.norm_weight_decay",
    "bias_weight_decay": "model.bias_weight_decay",
    "momentum": "model.optimizer.momentum",
    "mixup_alpha": "data.mixup_alpha",
    "cutmix_alpha": "data.cutmix_alpha",
    "auto_augment": "data.auto_augment",
    "ra_magnitude": "data.randaugment_magnitude",
    "augmix_severity": "data.augmix_severity",
    "random_erase": "data.random_erasing",
    "ra_reps": "data.repeated_augmentation",
    "lr_step_size": "model.lr_scheduler.step_size",
    "lr_gamma": "model.lr_scheduler.gamma",
    "lr_min": "model.lr_scheduler.eta_min",
    "clip_grad_norm": "trainer.gradient_clip_val",
    "callbacks": "trainer.callbacks",
    "logger": "trainer.logger",
}
"""Spellings of the recipe that the original trains with, for the commands that train or evaluate."""

_VALUES = {
    "opt": {
        "sgd": "--model.optimizer=SGD",
        "sgd_nesterov": "--model.optimizer=SGD --model.optimizer.momentum=0.9 --model.optimizer.nesterov=true",
        "rmsprop": "--model.optimizer=RMSprop",
        "adam": "--model.optimizer=Adam",
        "adamw": "--model.optimizer=AdamW",
    },
    "lr_scheduler": {
        "steplr": "--model.lr_scheduler=StepLR",
        "cosineannealinglr": "--model.lr_scheduler=CosineAnnealingLR",
        "exponentiallr": "--model.lr_scheduler=ExponentialLR",
    },
}
_FLAGS = {
    "amp": "--trainer.precision=bf16-mixed",
    "sync_bn": "--trainer.sync_batchnorm=true",
    "use_deterministic_algorithms": "--trainer.deterministic=true",
    "model_ema": "--trainer.callbacks+=EMAWeightAveraging",
    "ra_sampler": "--data.repeated_augmentation=3",
}
_ADVICE = {
    "workers": "is not needed: batches are indexed in memory",
    "print_freq": "is not needed: the bar is drawn by the clock, and numbers are logged once an epoch",
    "start_epoch": "is not needed: the checkpoint holds it; give --ckpt_path",
    "interpolation": "is not needed: images keep their size",
    "test_only": "is a command: mlprank test --ckpt_path best",
    "dist_url": "is given by the environment variables MASTER_ADDR and MASTER_PORT",
    "lr_warmup_epochs": "is part of a schedule: mlprank.models.schedule.WarmUp in a config",
    "lr_warmup_method": "is part of a schedule: mlprank.models.schedule.WarmUp in a config",
    "lr_warmup_decay": "is part of a schedule: mlprank.models.schedule.WarmUp in a config",
    "model_ema_decay": "is an argument of a callback: --trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay=0.999",
    "model_ema_steps": "is an argument of a callback: EMAWeightAveraging's update_every_n_steps",
}


_UNDOTTED = (
    "seed_everything",
    "weights_only",
    "print_config",
    "min_neurons",
    "protect_output",
    "finetune_epochs",
    "help",
)
"""Options of the parsers that train or evaluate which are no words and have no dot."""


def words_of(command: str) -> list[str]:
    """Return the words that a command understands, other spellings aside.

    Example:
        >>> words_of("export")
        ['ckpt_path', 'out', 'model', 'input_shape']
    """
    return [name for name, word in WORDS.items() if command in word.means]


def translate(command: str, arguments: Sequence[str]) -> list[str]:
    """Write a command line in the words of the command's parser: dashes or not, the original's spelling or ours.

    Args:
        command: The command.
        arguments: Its options.

    Raises:
        OptionError: If an option of the original has no counterpart; the text says what does its work.

    Example:
        >>> translate("fit", ["--epochs", "3", "--data-path=/data", "--device", "cpu"])
        ['--trainer.max_epochs', '3', '--data.data_dir=/data', '--trainer.accelerator', 'cpu']
    """
    spellings = dict(_spellings(command))
    translated: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "-c":
            argument = "--config"
        if not argument.startswith("--") or argument == "--":
            translated.append(argument)
            continue
        typed, equals, value = argument.partition("=")
        key, plus = typed[2:].replace("-", "_").removesuffix("+"), "+" * typed.endswith("+")
        lightning = command in _LIGHTNING and key not in spellings
        if lightning and key in _ADVICE:
            raise OptionError(f"{typed} {_ADVICE[key]}")
        if lightning and key in _FLAGS:
            translated.append(_FLAGS[key])
            continue
        if lightning and key in _VALUES:
            chosen = value if equals else rest.pop(0) if rest else ""
            if chosen.lower() in _VALUES[key]:
                translated += _VALUES[key][chosen.lower()].split()
                continue
            translated.append(f"--model.{'optimizer' if key == 'opt' else key}={chosen}")
            continue
        if lightning and "." not in key and key not in _UNDOTTED:
            near = difflib.get_close_matches(key, spellings, n=1, cutoff=0.8)
            if near:
                raise OptionError(f"there is no option {typed!r}; did you mean '--{near[0]}'?")
        head, dot, tail = key.partition(".")
        if head == "grid" and dot:
            name = f"grid.{spellings.get(tail, tail)}"
        else:
            name = spellings.get(key) or (f"{spellings[head]}.{tail}" if dot and head in spellings else key)
        if command in _DASHED:
            name = name.replace("_", "-")
        translated.append(f"--{name}{plus}{equals}{value}")
    return translated


def _spellings(command: str) -> Iterator[tuple[str, str]]:
    """Every spelling of every word of a command, with what its parser calls it."""
    if command in _LIGHTNING:
        yield from _TORCHVISION.items()
    for name, word in WORDS.items():
        if command in word.means:
            for spelling in (*word.also, name):
                yield spelling, word.means[command]


class Help(NamedTuple):
    """What `--help` says of a command, without importing what the command needs.

    Attributes:
        about: What the command does.
        groups: Titles, and options with their defaults, or with a text of their own for what is no word of all.
        examples: Command lines, with what they do.
        usage: What stands behind the command's name.
        more: Whether `--help all` shows more.
    """

    about: str
    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    examples: tuple[tuple[str, str], ...]
    usage: str = "[options]"
    more: bool = True


_NETWORK_AND_DATA = (
    "network and data",
    (("model", ""), ("data", "DigitsDataModule"), ("data_dir", ""), ("batch_size", "")),
)
_WHERE = ("where to compute", (("accelerator", "auto"), ("devices", "auto"), ("precision", "32"), ("seed", "0")))
_HOW_TO_PRUNE = (
    ("amount", "0.5"),
    ("measure", "weighted_pagerank"),
    ("method", "local"),
    ("compensation", "least_squares"),
    ("graph", "dag"),
    ("num_samples", "1024"),
    ("round_to", "1"),
    ("protect", "[]"),
)

HELP: dict[str, Help] = {
    "fit": Help(
        "Train a network. Each run has a directory of its own under runs/, with its config, its metrics and its checkpoints. "
        "With a PruningCallback in the config, or with --amount, the network is pruned at the end.",
        (
            ("what to train", (("config", ""), ("ckpt_path", ""), ("out", "runs/CONFIG"))),
            _NETWORK_AND_DATA,
            (
                "training",
                (
                    ("epochs", "1000"),
                    ("optimizer", "Adam"),
                    ("lr", "0.001"),
                    ("weight_decay", "0"),
                    ("model.lr_scheduler", "CLASS: schedule, such as StepLR or CosineAnnealingLR, with its options"),
                    ("model.label_smoothing", "X: share of the target spread over all classes (default 0)"),
                    ("data.auto_augment", "NAME: cifar10, randaugment or augmix"),
                    ("trainer.gradient_clip_val", "X: largest norm of the gradients"),
                    ("trainer.callbacks", "CLASS: a callback of Lightning's, with its options; += adds another"),
                    ("trainer.logger", "CLASS: CSVLogger, TensorBoardLogger or WandbLogger (default: metrics.csv)"),
                ),
            ),
            ("pruning at the end", _HOW_TO_PRUNE[:5]),
            _WHERE,
        ),
        (
            ("mlprank fit --config quickstart", "trains a small network on the bundled digits and prunes half of it"),
            (
                "mlprank fit --config quickstart --epochs 30 --lr 0.01 --amount 0.7",
                "what is typed wins over the config",
            ),
            ("mlprank fit --model my_package.MyModule --data my_package.MyData", "trains a LightningModule of yours"),
            ("mlprank fit --config quickstart --ckpt_path last", "goes on where the newest run was interrupted"),
        ),
    ),
    "validate": Help(
        "Accuracy of a checkpoint, dense or pruned, on the validation split.",
        (
            ("what to evaluate", (("ckpt_path", ""), ("config", "that of the checkpoint's run"))),
            _NETWORK_AND_DATA,
            _WHERE,
        ),
        (("mlprank validate --config quickstart --ckpt_path best", "validates the newest run's best checkpoint"),),
    ),
    "test": Help(
        "Accuracy of a checkpoint, dense or pruned, on the test split. Model and data are taken from the config beside the "
        "checkpoint, or from the checkpoint itself, unless they are typed.",
        (
            ("what to evaluate", (("ckpt_path", ""), ("config", "that of the checkpoint's run"))),
            _NETWORK_AND_DATA,
            _WHERE,
        ),
        (
            ("mlprank test --ckpt_path runs/quickstart/001/pruned.ckpt", "tests a pruned network"),
            (
                "mlprank test --ckpt_path weights.pt --model my_package.Net --model.width 64 --data my_package.MyData",
                "tests a bare state dict of a network of yours",
            ),
        ),
    ),
    "predict": Help(
        "Class and probability of every test image, as a CSV file in a directory of its own.",
        (
            (
                "what to evaluate",
                (("ckpt_path", ""), ("config", "that of the checkpoint's run"), ("out", "runs/CONFIG")),
            ),
            _NETWORK_AND_DATA,
            _WHERE,
        ),
        (
            (
                "mlprank predict --config quickstart --ckpt_path best",
                "writes runs/quickstart/predict/001/predictions.csv",
            ),
        ),
    ),
    "prune": Help(
        "Prune a checkpoint without training, compare dense and pruned, and write the pruned network. Model and data are "
        "taken from the config beside the checkpoint, or from the checkpoint itself, unless they are typed.",
        (
            ("what to prune", (("ckpt_path", ""), ("config", "that of the checkpoint's run"), ("out", "RUN/prune"))),
            ("how to prune", _HOW_TO_PRUNE),
            ("what to show", (("split", "test"), ("accelerator", "cpu"), ("seed", "0"))),
            _NETWORK_AND_DATA,
        ),
        (
            (
                "mlprank prune --ckpt_path runs/quickstart/001/checkpoints/best.ckpt --amount 0.3 0.5 0.7",
                "three networks",
            ),
            (
                "mlprank prune --ckpt_path weights.pt --model my_package.Net --model.width 64 --data my_package.MyData",
                "prunes a bare state dict of a network of yours",
            ),
        ),
    ),
    "shrink": Help(
        "Make a checkpoint as small as asked: pruned until a budget of parameters, FLOPs or latency is kept.",
        (
            ("what to shrink", (("ckpt_path", ""), ("config", "that of the checkpoint's run"), ("out", ""))),
            _NETWORK_AND_DATA,
            ("where to compute", (("accelerator", "cpu"),)),
        ),
        (("mlprank shrink --help all", "shows the budgets"),),
    ),
    "tune": Help(
        "Train every point of a grid, and find the best by validation accuracy. The same command goes on after an "
        "interruption; more values extend the grid. A config may hold `grid:` and `tune:` too.",
        (
            (
                "the grid",
                (
                    ("config", ""),
                    (
                        "grid.OPTION",
                        "VALUES: a list of values of any option of `mlprank fit`, as in --grid.lr '[0.1, 0.01]'",
                    ),
                    ("out", ""),
                ),
            ),
            (
                "the search",
                (
                    ("tune.engine", "NAME: batched (all at once on one device), local, ray or auto (default)"),
                    ("tune.gpus_per_trial", "X: GPUs, or a fraction of one, for a trial; ray only"),
                    ("tune.address", "ADDRESS: of a Ray cluster; auto for this machine's"),
                    ("tune.retry_failed", "BOOL: train trials again that failed (default false)"),
                    ("tune.top", "N: how many of the best trials are shown (default 5)"),
                ),
            ),
            (
                "training",
                (("epochs", ""), ("batch_size", ""), ("optimizer", ""), ("accelerator", "auto"), ("seed", "0")),
            ),
        ),
        (("mlprank tune --config quickstart --grid.lr '[0.01, 0.003]' --out runs/grid", "trains two networks"),),
        usage="--config NAME --grid.OPTION VALUES --out DIR [options of fit]",
    ),
    "export": Help(
        "Write the network of a checkpoint to a file that runs without mlprank. The file takes any batch size and is "
        "checked against the network before it takes its place.",
        (
            (
                "what to write",
                (
                    ("ckpt_path", ""),
                    ("format", "NAME: onnx (needs mlprank[export]), safetensors or pt2 (default onnx)"),
                    ("out", "beside the checkpoint"),
                    ("input_shape", "what the checkpoint says"),
                    ("with_preprocessing", ": take pixels as image files have them, 0 to 255, and normalise them"),
                    ("mean", "NUMBERS: means of the channels (default: those of the data set)"),
                    ("std", "NUMBERS: standard deviations likewise"),
                    ("classes", "NAMES: names of the classes, for the metadata"),
                    ("model", ""),
                ),
            ),
        ),
        (("mlprank export runs/quickstart/001/pruned.ckpt --format onnx", "writes runs/quickstart/001/pruned.onnx"),),
        usage="CHECKPOINT [options]",
        more=False,
    ),
    "bench": Help(
        "Compare two networks on the CPU: parameters, FLOPs, bytes, and the latency of eager, compiled and onnxruntime runs "
        "that take turns.",
        (
            (
                "what to measure",
                (
                    ("ckpt_path", "two: dense, then pruned"),
                    ("backends", "NAMES: any of [eager,compiled,onnxruntime] (default all)"),
                    ("batch_sizes", "NUMBERS: (default [1,64,1024])"),
                    ("repeats", "N: timed runs of each network, backend and batch size (default 20)"),
                    ("threads", "N: CPU threads (default: torch's choice)"),
                    ("input_shape", "what the checkpoint says"),
                    ("out", ""),
                    ("model", ""),
                ),
            ),
        ),
        (("mlprank bench dense.ckpt pruned.ckpt --batch_sizes [1,64] --out bench.json", "also writes the numbers"),),
        usage="DENSE PRUNED [options]",
        more=False,
    ),
}


def render_help(command: str) -> str:
    """Return the help of a command: what it does, the options that people use, and examples.

    Args:
        command: A command that has its help here.
    """
    shown = HELP[command]
    lines = [f"mlprank {command} {shown.usage}", "", *_wrapped(shown.about, 0)]
    for title, options in shown.groups:
        lines += ["", f"{title}:"]
        for name, default in options:
            word = WORDS.get(name)
            if word is None:
                value, _, text = default.partition(": ")
            else:
                value, text = word.value, word.text + (f" (default {default})" if default else "")
            head = f"  --{name} {value}"
            wrapped = list(_wrapped(text, 28))
            lines += [f"{head:<28}{wrapped[0].strip()}", *wrapped[1:]] if len(head) < 27 else [head, *wrapped]
    lines += ["", "examples:"]
    for example, what in shown.examples:
        lines += [f"  {example}", f"      {what}"]
    if shown.more:
        lines += ["", f"mlprank {command} --help all shows every option"]
    return "\n".join(lines) + "\n"


def render_table() -> str:
    """Return the vocabulary as a Markdown table: every word, what it means, other spellings, and who understands it."""
    rows = ["| option | meaning | other spellings | commands |", "|---|---|---|---|"]
    for name, word in WORDS.items():
        also = ", ".join(f"`--{spelling}`" for spelling in word.also)
        rows.append(f"| `--{name} {word.value}` | {word.text} | {also} | {', '.join(word.means)} |")
    rows += ["", "The spellings of the original's training script, on fit, tune, validate, test and predict:", ""]
    rows += ["| original | here |", "|---|---|"]
    for name, option in _TORCHVISION.items():
        rows.append(f"| `--{name.replace('_', '-')}` | `--{option}` |")
    for name, values in _VALUES.items():
        rows += [f"| `--{name.replace('_', '-')} {value}` | `{options}` |" for value, options in values.items()]
    rows += [f"| `--{name.replace('_', '-')}` | `{options}` |" for name, options in _FLAGS.items()]
    rows += [f"| `--{name.replace('_', '-')}` | {advice} |" for name, advice in _ADVICE.items()]
    return "\n".join(rows) + "\n"


def _wrapped(text: str, indent: int) -> Iterator[str]:
    """Break a text into lines that fit into 80 columns."""
    yield from textwrap.wrap(text, width=80, initial_indent=" " * indent, subsequent_indent=" " * indent)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command that needs no classes: its help is `render_help`, its errors name the nearest option.

    Args:
        command: The command.
        **options: As for `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, **options: Any) -> None:
        super().__init__(prog=f"mlprank {command}", allow_abbrev=False, exit_on_error=False, **options)
        self.command = command

    def format_help(self) -> str:
        """Return the help of the vocabulary where it has one."""
        return render_help(self.command) if self.command in HELP else super().format_help()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options.

        Raises:
            OptionError: If an option is unknown, missing or has a wrong value.
        """
        try:
            found, unknown = self.parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            name = "" if error.argument_name is None else f"{error.argument_name.split('/')[-1]}: "
            raise OptionError(f"{name}{error.message}") from error
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            known += [f"--{word}" for word in words_of(self.command)]
            if unknown[0].startswith("-"):
                option = unknown[0].partition("=")[0]
                raise OptionError(f"there is no option {option!r}{did_you_mean(option, known)}")
            raise OptionError(f"{unknown[0]!r} has no place here; see mlprank {self.command} --help")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise the error.

        Raises:
            OptionError: Always.
        """
        raise OptionError(message)


def listed(kind: type[Any]) -> Callable[[str], list[Any]]:
    """Return what reads a list such as [1,28,28] from a command line.

    Args:
        kind: Of what, such as `int`.

    Example:
        >>> listed(int)("[1,28,28]")
        [1, 28, 28]
    """

    def read(text: str) -> list[Any]:
        try:
            return [kind(word.strip()) for word in text.strip("[]()").split(",") if word.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as [1,2,3]") from error

    return read
