"""What a run shows: one bar on a terminal, a line an epoch elsewhere, nothing after it was interrupted."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch import Callback

from mlprank.cli import main
from mlprank.training import run as training_run


class Terminal(io.StringIO):
    """A standard output that says of itself that it is a terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


class Shown(NamedTuple):
    code: int
    text: str


@pytest.fixture
def on_terminal(mlprank: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Shown]:
    """The program on a terminal, in an empty directory that holds `small.yaml`."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def run(*arguments: str) -> Shown:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", shown := Terminal())
            return Shown(main(list(arguments)), shown.getvalue())

    return run


def test_a_terminal_shows_one_bar_through_all_epochs_and_validations(on_terminal: Callable[..., Shown]) -> None:
    code, text = on_terminal("fit", "--config=small.yaml", "--epochs=3")
    assert code == 0
    assert all(f"epoch {epoch}/3" in text for epoch in (1, 2, 3))
    assert text.count("\x1b[?25l") == 1, "the bar starts once"
    assert text.count("\x1b[?25h") == 1, "and is taken away once"
    last = text.splitlines()[-1].split("\x1b[2K")[-1]
    assert last.startswith("3 epochs  train_loss ")
    assert len(last) <= 80


def test_what_a_schedule_says_stands_above_the_bar(on_terminal: Callable[..., Shown]) -> None:
    typed = ("--epochs=4", "--amount=0.5", "--schedule=linear", "--finetune_epochs=2")
    code, text = on_terminal("fit", "--config=small.yaml", *typed)
    assert code == 0
    said = [place.start() for place in re.finditer(r"Epoch \d: ", text)]
    assert len(said) >= 2
    assert all(re.search(r"(\n|\x1b\[\w+)$", text[:place]) for place in said), "nothing is glued to the bar"


@pytest.mark.parametrize(
    ("command", "metric"), [("test", "test_top1"), ("validate", "val_top1"), ("predict", "359 pr")]
)
def test_an_evaluation_has_a_bar_of_its_own_batches(
    on_terminal: Callable[..., Shown], command: str, metric: str
) -> None:
    assert main(["fit", "--config=small.yaml", "--epochs=1"]) == 0
    code, text = on_terminal(command, "--config=small.yaml", "--ckpt_path=last", "--data.batch_size=1000")
    assert code == 0
    assert f"{command} " in text
    assert "0/1" in text
    assert metric in text


def test_after_an_interruption_nothing_is_drawn_again(
    on_terminal: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupts(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 13:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("mlprank.training.progress._REDRAW_S", 0.0)
    original = training_run._run_callbacks
    monkeypatch.setattr(training_run, "_run_callbacks", lambda *a, **k: [*original(*a, **k), Interrupts()])
    code, text = on_terminal("fit", "--config=small.yaml")
    assert code == 130
    assert "epoch 2/2" in text
    assert "epoch" not in text.rpartition("\x1b[?25h")[2]


def test_without_a_terminal_every_epoch_is_a_line_of_at_most_80_columns(
    mlprank: Callable[..., Any], tmp_path: Path
) -> None:
    lines = mlprank("fit", "--config=small.yaml", "--epochs=2").out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert all("train_loss" in line and "val_top1" in line and len(line) <= 80 for line in epochs)
    assert not any("\x1b" in line for line in lines)
