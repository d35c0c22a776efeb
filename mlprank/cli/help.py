"""What `--help` says of the commands around Lightning, without importing it."""

import textwrap
from typing import NamedTuple

from mlprank.cli.vocabulary import WORDS, CommandParser

_NETWORK = {"network and data": "model data data_dir batch_size"}
_WHERE = {"where to compute": "accelerator devices precision seed"}
_TAKEN = (
    "Model and data are taken from the config beside the checkpoint, or from the checkpoint itself, unless they are "
    "typed."
)
_STATE_DICT = "weights.pt --model my_package.Net --model.width 64 --data my_package.MyData"
_BEST = "runs/quickstart/001/checkpoints/best.ckpt"


class Help(NamedTuple):
    """The help of a command."""

    about: str  # what the command does
    groups: dict[str, str]  # words by title; `word=value` has another default here, and others are in `_OWN`
    examples: dict[str, str]  # command lines, with what they do


_OWN = {
    "grid.OPTION": ("VALUES", "a list of values of any option of `mlprank fit`, as in --grid.lr '[0.1, 0.01]'"),
    "tune.engine": ("NAME", "batched (all at once on one device), local, ray or auto (default)"),
    "tune.gpus_per_trial": ("X", "GPUs, or a fraction of one, for a trial; ray only"),
    "tune.address": ("ADDRESS", "of a Ray cluster; auto for this machine's"),
    "tune.retry_failed": ("BOOL", "train trials again that failed (default false)"),
    "tune.top": ("N", "how many of the best trials are shown (default 5)"),
}
_EVALUATION = {"what to evaluate": "ckpt_path config"} | _NETWORK | _WHERE
_RECIPE = "amount measure method compensation graph num_samples round_to protect refine"

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
        | _WHERE,
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
        {"what to evaluate": "ckpt_path config out=runs/CONFIG"} | _NETWORK | _WHERE,
        {"mlprank predict --config quickstart --ckpt_path best": "writes runs/quickstart/predict/001/predictions.csv"},
    ),
    "prune": Help(
        f"Prune a checkpoint without training, compare dense and pruned, and write the pruned network. {_TAKEN}",
        {
            "what to prune": "ckpt_path config out=RUN/prune",
            "how to prune": _RECIPE,
            "what to show": "split accelerator=cpu seed",
        }
        | _NETWORK,
        {
            f"mlprank prune --ckpt_path {_BEST} --amount 0.3 0.5 0.7": "three networks",
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
        {f"mlprank shrink --ckpt_path {_BEST} --max_drop 0.5": "loses half a point of accuracy at most"},
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
            if name in _OWN:
                parser.add(name, *_OWN[name])
            else:
                default = default or WORDS[name].default
                parser.add(name, text=WORDS[name].text + (f" (default {default})" if default else ""))
    return parser
