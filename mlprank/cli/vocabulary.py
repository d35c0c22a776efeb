"""One word for one thing on every command: the options, the original's spellings, parsers, and help without torch."""

import argparse
import difflib
import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from mlprank.utils.errors import OptionError, did_you_mean

_TRAIN = ("fit", "tune")
_EVALUATE = ("validate", "test", "predict")
LIGHTNING = (*_TRAIN, *_EVALUATE)
_PRUNE = ("prune", "shrink")
_PRUNING = (*_TRAIN, "prune", "experiment")
_RECIPE = (*_PRUNING, "shrink")
_CONFIGURED = (*LIGHTNING, *_PRUNE, "experiment")


class Word(NamedTuple):
    """An option that means the same on every command that has it."""

    value: str  # what stands behind it
    text: str  # what it means
    commands: tuple[str, ...]  # those that have it
    means: str = ""  # what the parsers around Lightning call it, where that is another name
    also: tuple[str, ...] = ()  # other spellings, the original's among them
    default: str = ""  # the default, for help


# fmt: off
WORDS: dict[str, Word] = {
    "config": Word("NAME", "a config: a file, or a name that `mlprank configs` lists; several are merged", _CONFIGURED),
    "ckpt_path": Word("FILE", "a checkpoint: a file, or `best` or `last` of the newest run",
                      ("fit", *_EVALUATE, *_PRUNE, "export", "bench", "experiment"), also=("resume", "checkpoint")),
    "out": Word("PATH", "where to write", (*_CONFIGURED, "export", "bench", "configs", "report"),
                "trainer.default_root_dir", ("output_dir", "out_path", "output", "json")),
    "model": Word("CLASS", "a network or LightningModule: MLP, or an import path such as my_package.MyModule; its "
                  "options are --model.NAME", (*_CONFIGURED, "export", "bench"), also=("model_name",)),
    "data": Word("CLASS", "a data module, such as DigitsDataModule or my_package.MyData; its options are --data.NAME",
                 _CONFIGURED, "", ("dataset_name", "data_name"), "DigitsDataModule"),
    "data_dir": Word("DIR", "where image files are, or go to; else the environment variable MLPRANK_DATA_DIR",
                     _CONFIGURED, "data.data_dir", ("data_path",)),
    "batch_size": Word("N", "samples in a batch", (*LIGHTNING, "prune"), "data.batch_size"),
    "epochs": Word("N", "epochs of training", _TRAIN, "trainer.max_epochs", ("max_epochs",), "1000"),
    "optimizer": Word("CLASS", "optimizer, such as Adam, SGD or AdamW", _TRAIN, "model.optimizer", default="Adam"),
    "lr": Word("X", "learning rate", _TRAIN, "model.optimizer.lr", ("learning_rate",), "0.001"),
    "weight_decay": Word("X", "weight decay", _TRAIN, "model.optimizer.weight_decay", default="0"),
    "lr_scheduler": Word("CLASS", "schedule, such as StepLR or CosineAnnealingLR, with its options "
                         "--model.lr_scheduler.NAME", _TRAIN, "model.lr_scheduler"),
    "label_smoothing": Word("X", "share of the target spread over all classes", LIGHTNING, "model.label_smoothing",
                            default="0"),
    "auto_augment": Word("NAME", "cifar10, randaugment or augmix", LIGHTNING, "data.auto_augment"),
    "gradient_clip": Word("X", "largest norm of the gradients", LIGHTNING, "trainer.gradient_clip_val",
                          ("clip_grad_norm",)),
    "callbacks": Word("CLASS", "a callback of Lightning's, with its options; += adds another", LIGHTNING,
                      "trainer.callbacks"),
    "logger": Word("CLASS", "CSVLogger, TensorBoardLogger or WandbLogger", LIGHTNING, "trainer.logger",
                   default="metrics.csv"),
    "accelerator": Word("NAME", "where to compute: cpu, gpu, mps or auto", _CONFIGURED, "trainer.accelerator",
                        ("device",), "auto"),
    "devices": Word("N", "how many devices", LIGHTNING, "trainer.devices", ("world_size",), "auto"),
    "precision": Word("NAME", "32, bf16-mixed, 16-mixed, 64", LIGHTNING, "trainer.precision", default="32"),
    "seed": Word("N", "seed of everything that is drawn", _CONFIGURED, "seed_everything", default="0"),
    "amount": Word("SHARE", "share of neurons to remove, in [0, 1); several give a network each", _PRUNING,
                   default="0.5"),
    "measure": Word("NAME", "what scores neurons: weighted_pagerank, modified_pagerank, norm, activation, wanda, "
                    "reconstruction, random", _RECIPE, "", ("measure_name",), "weighted_pagerank"),
    "method": Word("NAME", "what turns scores into masks: local or global", _PRUNING, "", ("method_name",), "local"),
    "compensation": Word("NAME", "what a pruned neuron leaves behind: least_squares, constant, mean or zero", _RECIPE,
                         default="least_squares"),
    "graph": Word("NAME", "dag, the true graph, or chain, the published one", _PRUNING, default="dag"),
    "num_samples": Word("N", "calibration samples", _RECIPE, "", ("calibration_samples",), "1024"),
    "round_to": Word("N", "kept neurons become a multiple of this", (*_TRAIN, *_PRUNE), default="1"),
    "protect": Word("NAMES", "layers to keep whole, as in [fc1] or ['blocks.*']", (*_TRAIN, *_PRUNE), default="[]"),
    "refine": Word("N", "steps of distillation towards the dense network", (*_TRAIN, *_PRUNE), default="0"),
    "split": Word("NAME", "split that accuracies are shown of: val or test", ("prune",), default="test"),
    "max_drop": Word("POINTS", "points of validation top-1 that may be lost, such as 0.5", ("shrink",)),
    "max_params": Word("N", "the most parameters: 50000, 50k, or a share, such as 0.3", ("shrink",)),
    "max_flops": Word("N", "the most FLOPs of a sample, such as 2M, or a share", ("shrink",)),
    "max_bytes": Word("N", "the largest file of weights, such as 1MB, or a share", ("shrink",)),
    "max_latency": Word("TIME", "the longest time of a batch, such as 2ms, or a share", ("shrink",)),
    "input_shape": Word("SHAPE", "shape of one sample, such as [3,32,32]", ("export", "bench")),
}
# fmt: on
"""The vocabulary. What is not here is an option of one command, or one of Lightning's with a dot in it."""

_WARM_UP = "is part of a schedule: mlprank.models.schedule.WarmUp in a config"
_ORIGINAL = {
    "norm_weight_decay": "--model.norm_weight_decay",
    "bias_weight_decay": "--model.bias_weight_decay",
    "momentum": "--model.optimizer.momentum",
    "mixup_alpha": "--data.mixup_alpha",
    "cutmix_alpha": "--data.cutmix_alpha",
    "ra_magnitude": "--data.randaugment_magnitude",
    "augmix_severity": "--data.augmix_severity",
    "random_erase": "--data.random_erasing",
    "ra_reps": "--data.repeated_augmentation",
    "lr_step_size": "--model.lr_scheduler.step_size",
    "lr_gamma": "--model.lr_scheduler.gamma",
    "lr_min": "--model.lr_scheduler.eta_min",
    "opt": "--model.optimizer",
    "opt sgd": "--model.optimizer=SGD",
    "opt sgd_nesterov": "--model.optimizer=SGD --model.optimizer.momentum=0.9 --model.optimizer.nesterov=true",
    "opt rmsprop": "--model.optimizer=RMSprop",
    "opt adam": "--model.optimizer=Adam",
    "opt adamw": "--model.optimizer=AdamW",
    "lr_scheduler steplr": "--model.lr_scheduler=StepLR",
    "lr_scheduler cosineannealinglr": "--model.lr_scheduler=CosineAnnealingLR",
    "lr_scheduler exponentiallr": "--model.lr_scheduler=ExponentialLR",
    "amp": "--trainer.precision=bf16-mixed",
    "sync_bn": "--trainer.sync_batchnorm=true",
    "use_deterministic_algorithms": "--trainer.deterministic=true",
    "model_ema": "--trainer.callbacks+=EMAWeightAveraging",
    "ra_sampler": "--data.repeated_augmentation=3",
    "workers": "is not needed: batches are indexed in memory",
    "print_freq": "is not needed: the bar is drawn by the clock, and numbers are logged once an epoch",
    "start_epoch": "is not needed: the checkpoint holds it; give --ckpt_path",
    "interpolation": "is not needed: images keep their size",
    "test_only": "is a command: mlprank test --ckpt_path best",
    "dist_url": "is given by the environment variables MASTER_ADDR and MASTER_PORT",
    "lr_warmup_epochs": _WARM_UP,
    "lr_warmup_method": _WARM_UP,
    "lr_warmup_decay": _WARM_UP,
    "model_ema_decay": "is an argument of a callback: --trainer.callbacks+=EMAWeightAveraging "
    "--trainer.callbacks.decay=0.999",
    "model_ema_steps": "is an argument of a callback: EMAWeightAveraging's update_every_n_steps",
}
"""The original's options, values of options and flags, for LIGHTNING: what they are here, or where they went."""

_GROUPS = ("trainer", "model", "data", "grid", "tune", "schedule")
"""What else may stand before a dot, and an option that is near a word and is not one."""


def words_of(command: str) -> dict[str, str]:
    """Return the words that a command understands, other spellings aside, with what its parser calls them."""
    found = {}
    for name, word in WORDS.items():
        if command in word.commands:
            has_it = command in LIGHTNING or (command in _PRUNE and word.means.startswith("data."))
            found[name] = word.means if word.means and has_it else name
    return found | ({"out": "tune.out"} if command == "tune" else {})


def translate(command: str, arguments: Sequence[str]) -> list[str]:
    """Write a command line in the words of the command's parser: dashes or not, the original's spelling or ours.

    Examples:
        >>> translate("fit", ["--epochs", "3", "--data-path=/data", "--device", "cpu"])
        ['--trainer.max_epochs', '3', '--data.data_dir=/data', '--trainer.accelerator', 'cpu']
    """
    words = words_of(command).items()
    known = {spelling: option for name, option in words for spelling in (name, *WORDS[name].also)}
    original = {key: meant for key, meant in _ORIGINAL.items() if command in LIGHTNING and key not in known}
    translated: list[str] = []
    rest = ["--config" if argument == "-c" else argument for argument in arguments]
    while rest:
        argument = rest.pop(0)
        typed, equals, value = argument.partition("=")
        key, plus = typed[2:].replace("-", "_").removesuffix("+"), "+" * typed.endswith("+")
        head, dot, tail = key.partition(".")
        chosen = original.get(f"{key} {(value if equals else ''.join(rest[:1])).lower()}")
        meant = original.get(key, "")
        if not argument.startswith("--") or argument == "--":
            translated.append(argument)
        elif chosen:
            translated += chosen.split()
            rest = rest if equals else rest[1:]
        elif meant and not meant.startswith("--"):
            raise OptionError(f"{typed} {meant}")
        elif "=" in meant:
            translated.append(meant)
        else:
            if not meant and command in (*LIGHTNING, *_PRUNE) and head not in (*known, *_GROUPS):
                likely = [*known, *(_GROUPS if dot else ())]
                if near := difflib.get_close_matches(head, likely, n=1, cutoff=0.7 if dot else 0.8):
                    raise OptionError(f"there is no option {typed!r}; did you mean '--{near[0]}{dot}{tail}'?")
            if head == "grid" and dot:
                meant = f"--grid.{known.get(tail, tail)}"
            option = known.get(key) or (f"{known[head]}.{tail}" if dot and head in known else key)
            translated.append(f"{meant or '--' + option}{plus}{equals}{value}")
    return translated


class CommandParser(argparse.ArgumentParser):
    """The parser of a command that needs no classes: words bring their help along, errors name the nearest option."""

    def __init__(self, command: str, about: str, example: str) -> None:
        width = functools.partial(argparse.RawDescriptionHelpFormatter, width=80, max_help_position=28)
        super().__init__(
            prog=f"mlprank {command}",
            description=textwrap.fill(about, 80),
            epilog=f"example:\n  {example}",
            allow_abbrev=False,
            formatter_class=width,
        )
        self.start = super().add_argument  # of the group that was begun last

    def begin(self, title: str) -> None:
        """Begin a group of options."""
        self.start = self.add_argument_group(title).add_argument

    def add(self, name: str, value: str = "", text: str = "", **options: Any) -> None:
        """Add an option, with what stands behind it and what it means; those of a word are in the vocabulary."""
        word = WORDS.get(name, Word(value, text, ()))
        if not str(options.get("action")).startswith("store_"):
            options["metavar"] = value or word.value
        self.start(f"--{name}", help=text or word.text, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown and unknown[0].startswith("-"):
            option = unknown[0].partition("=")[0]
            raise OptionError(f"there is no option {option!r}{did_you_mean(option, self._option_string_actions)}")
        if unknown:
            raise OptionError(f"{unknown[0]!r} has no place here; see {self.prog} --help")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), action.choices)
            raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(action.choices)}{hint}")

    def error(self, message: str) -> NoReturn:
        """Raise the error, which begins with the name of its option."""
        raise OptionError(message.removeprefix("argument "))


def listed(kind: type[Any]) -> Callable[[str], list[Any]]:
    """Return what reads a list such as [1,28,28] from a command line."""

    def read(text: str) -> list[Any]:
        try:
            return [kind(word.strip()) for word in text.strip("[]()").split(",") if word.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as [1,2,3]") from error

    return read


_NETWORK = {"network and data": "model data data_dir batch_size"}
_COMPUTE = {"where to compute": "accelerator devices precision seed"}
_TAKEN = (
    "Model and data are taken from the config beside the checkpoint, or from the checkpoint itself, unless they are "
    "typed."
)
_STATE_DICT = "weights.pt --model my_package.Net --model.width 64 --data my_package.MyData"
_CHECKPOINT = "runs/quickstart/001/checkpoints/best.ckpt"


class Help(NamedTuple):
    """The help of a command."""

    about: str  # what the command does
    groups: dict[str, str]  # words by title; `word=value` has another default here, and others are in `_OWN`
    examples: dict[str, str]  # command lines, with what they do


_OWN = {
    "grid.OPTION": Word("VALUES", "a list of values of any option of `mlprank fit`, as in --grid.lr '[0.1, 0.01]'", ()),
    "tune.engine": Word("NAME", "batched (all at once on one device), local, ray or auto (default)", ()),
    "tune.gpus_per_trial": Word("X", "GPUs, or a fraction of one, for a trial; ray only", ()),
    "tune.address": Word("ADDRESS", "of a Ray cluster; auto for this machine's", ()),
    "tune.retry_failed": Word("BOOL", "train trials again that failed (default false)", ()),
    "tune.top": Word("N", "how many of the best trials are shown (default 5)", ()),
}
_EVALUATION = {"what to evaluate": "ckpt_path config"} | _NETWORK | _COMPUTE

HELP: dict[str, Help] = {
    "fit": Help(
        "Train a network. Each run has a directory of its own under runs/, with its config, its metrics and its "
        "checkpoints. With a PruningCallback in the config, or with --amount, the network is pruned at the end.",
        {"what to train": "config ckpt_path out=runs/CONFIG"}
        | _NETWORK
        | {
            "training": "epochs optimizer lr weight_decay lr_scheduler label_smoothing auto_augment gradient_clip "
            "callbacks logger",
            "pruning at the end": "amount measure method compensation graph",
        }
        | _COMPUTE,
        {
            "mlprank fit --config quickstart": "trains a small network on the bundled digits and prunes half of it",
            "mlprank fit --config quickstart --epochs 30 --lr 0.01 --amount 0.7": "what is typed wins over the config",
            "mlprank fit --model my_package.MyModule --data my_package.MyData": "trains a LightningModule of yours",
            "mlprank fit --config quickstart --ckpt_path last": "goes on where the newest run was interrupted",
        },
    ),
    "validate": Help(
        f"Accuracy of a checkpoint, dense or pruned, on the validation split. {_TAKEN}",
        _EVALUATION,
        {"mlprank validate --config quickstart --ckpt_path best": "validates the newest run's best checkpoint"},
    ),
    "test": Help(
        f"Accuracy of a checkpoint, dense or pruned, on the test split. {_TAKEN}",
        _EVALUATION,
        {
            "mlprank test --ckpt_path runs/quickstart/001/pruned.ckpt": "tests a pruned network",
            f"mlprank test --ckpt_path {_STATE_DICT}": "tests a bare state dict of a network of yours",
        },
    ),
    "predict": Help(
        f"Class and probability of every test image, as a CSV file in a directory of its own. {_TAKEN}",
        {"what to evaluate": "ckpt_path config out=runs/CONFIG"} | _NETWORK | _COMPUTE,
        {"mlprank predict --config quickstart --ckpt_path best": "writes runs/quickstart/predict/001/predictions.csv"},
    ),
    "prune": Help(
        f"Prune a checkpoint without training, compare dense and pruned, and write the pruned network. {_TAKEN}",
        {
            "what to prune": "ckpt_path config out=RUN/prune",
            "how to prune": "amount measure method compensation graph num_samples round_to protect refine",
            "what to show": "split accelerator=cpu seed",
        }
        | _NETWORK,
        {
            f"mlprank prune --ckpt_path {_CHECKPOINT} --amount 0.3 0.5 0.7": "three networks",
            f"mlprank prune --ckpt_path {_STATE_DICT}": "prunes a bare state dict of a network of yours",
        },
    ),
    "shrink": Help(
        f"Find the smallest network of a checkpoint that keeps a budget, chosen on the validation split. {_TAKEN}",
        {
            "what to shrink": "ckpt_path config out=RUN/shrink",
            "what to keep": "max_drop max_params max_flops max_bytes max_latency",
            "how to prune": "measure=reconstruction compensation num_samples=4096 round_to protect refine=1000",
            "where to compute": "accelerator=cpu seed",
            "network and data": "model data data_dir",
        },
        {f"mlprank shrink --ckpt_path {_CHECKPOINT} --max_drop 0.5": "loses half a point of accuracy at most"},
    ),
    "tune": Help(
        "Train every point of a grid, and find the best by validation accuracy. The same command goes on after an "
        "interruption; more values extend the grid. A config may hold `grid:` and `tune:` too.",
        {
            "the grid": "config grid.OPTION out",
            "the search": "tune.engine tune.gpus_per_trial tune.address tune.retry_failed tune.top",
            "training": "epochs batch_size optimizer accelerator seed",
        },
        {"mlprank tune --config quickstart --grid.lr '[0.01, 0.003]' --out runs/grid": "trains two networks"},
    ),
}


def help_parser(command: str) -> CommandParser:
    """Return a parser that only knows what help shows: what a command does, the options that people use, examples."""
    shown = HELP[command]
    lines = ["examples:"]
    for example, what in shown.examples.items():
        parts = textwrap.wrap(example, 76, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        lines += ["  " + " \\\n  ".join(parts), f"      {what}"]
    parser = CommandParser(command, shown.about, "")
    parser.epilog = "\n".join([*lines, "", f"mlprank {command} --help all shows every option"])
    parser.usage = f"mlprank {command} [options]"
    for title, names in shown.groups.items():
        parser.begin(title)
        for name, _, default in (entry.partition("=") for entry in names.split()):
            word = _OWN.get(name) or WORDS[name]
            default = default or word.default
            parser.add(name, word.value, word.text + (f" (default {default})" if default else ""))
    return parser
