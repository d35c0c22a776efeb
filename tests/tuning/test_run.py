"""One command trains a grid, goes on where it stopped, and hands out the winner."""

import csv
import io
import json
import math

import pytest
import torch
import yaml
from rich.console import Console

import mlprank
from mlprank.cli import main
from mlprank.datamodules import DigitsDataModule
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning import engines
from mlprank.tuning.engines import Engine
from mlprank.tuning.run import tune
from mlprank.tuning.store import Store

LR = "model.optimizer.init_args.lr"
SEED = "data.init_args.seed"


def run(config, out, *options, engine="batched"):
    text = io.StringIO()
    console = Console(file=text, width=200)
    code = tune(["--config", str(config), f"--tune.out={out}", f"--tune.engine={engine}", *options], console=console)
    return code, text.getvalue()


def results(out):
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("trials/*/result.json")}


def numbers(row):
    return {name: -1.0 if value is None else value for name, value in row.items()}


def test_stacked_and_separate_trials_give_the_same_results_and_the_winner_is_an_ordinary_checkpoint(config, tmp_path):
    grid = (f"--grid.{LR}=[1e-2, 1e200, 1e-3]", f"--grid.{SEED}=[0, 1]", "--trainer.precision=64-true")
    code, text = run(config, tmp_path / "stacked", *grid)
    alone, _ = run(config, tmp_path / "alone", *grid, engine="local")
    assert code == alone == 0
    ours, theirs = results(tmp_path / "stacked"), results(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    for key, result in ours.items():
        assert result["status"] == theirs[key]["status"]
        assert result["best_epoch"] == theirs[key]["best_epoch"]
        assert len(result["history"]) == len(theirs[key]["history"])
        for mine, other in zip(result["history"], theirs[key]["history"], strict=True):
            assert numbers(mine) == pytest.approx(numbers(other), rel=1e-5)
    assert sorted(result["status"] for result in ours.values()) == ["diverged"] * 2 + ["done"] * 4
    assert "diverged: 2 of 6 trials" in text
    best = max(filter(None, (result["val_top1"] for result in ours.values())))
    classifier = ImageClassifier.load_from_checkpoint(tmp_path / "stacked" / "best.ckpt", weights_only=True).eval()
    winner = yaml.safe_load((tmp_path / "stacked" / "best.yaml").read_text())
    data = DigitsDataModule(seed=winner["data"]["init_args"]["seed"])
    with torch.no_grad():
        correct = sum((classifier(x).argmax(1) == y).sum().item() for x, y in data.val_dataloader())
    assert correct / 288 == pytest.approx(best)
    assert (tmp_path / "stacked" / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "stacked" / "trials").glob("*/best.ckpt"))) == 1
    rows = list(csv.DictReader((tmp_path / "stacked" / "trials.csv").open()))
    assert [row["lr"] for row in rows] == ["0.01", "0.01", "1e+200", "1e+200", "0.001", "0.001"]


def test_the_same_command_trains_nothing_again_and_more_values_extend(config, tmp_path):
    assert run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02]")[0] == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/trials/*/result.json")}
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02]")
    assert code == 0
    assert "2 trials, 2 of them done before" in text
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.03, 0.01, 0.02]")
    assert code == 0
    assert "3 trials, 2 of them done before" in text
    assert len(results(tmp_path / "out")) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())


def test_a_trial_that_cannot_be_trained_is_recorded_once_and_the_exit_code_says_so(config, tmp_path, monkeypatch):
    real, tried = Engine.train, []

    def breaking(engine, trial):
        tried.append(trial.label)
        if trial.point[LR] == 0.02:
            raise RuntimeError("broken on purpose")
        return real(engine, trial)

    monkeypatch.setattr(Engine, "train", breaking)
    grid = f"--grid.{LR}=[0.01, 0.02]"
    code, text = run(config, tmp_path / "out", grid, engine="local")
    assert code == 1
    assert "failed: lr=0.02: RuntimeError: broken on purpose" in text
    assert tried == ["lr=0.01", "lr=0.02"]
    assert run(config, tmp_path / "out", grid, engine="local")[0] == 1
    assert len(tried) == 2
    monkeypatch.setattr(Engine, "train", real)
    assert run(config, tmp_path / "out", grid, "--tune.retry_failed=true", engine="local")[0] == 0


@pytest.mark.parametrize("engine", ["batched", "local"])
def test_what_callbacks_log_within_an_epoch_makes_no_epochs(config, tmp_path, engine):
    within = ("--trainer.callbacks+=LearningRateMonitor", "--trainer.log_every_n_steps=1")
    assert run(config, tmp_path / "out", f"--grid.{LR}=[0.01]", *within, engine=engine)[0] == 0
    (result,) = results(tmp_path / "out").values()
    assert [row["epoch"] for row in result["history"]] == [0, 1]
    assert all(row["val_top1"] > 0 for row in result["history"])


def test_what_cannot_be_stacked_is_trained_one_by_one_with_the_reason(config, tmp_path):
    stopping = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss")
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02]", *stopping)
    assert code == 0
    assert "2 trials are trained one by one: trainer.callbacks: EarlyStopping may act on one trial" in text
    assert {result["engine"] for result in results(tmp_path / "out").values()} == {"local"}


def test_networks_with_batch_norm_are_stacked(config, tmp_path):
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02]", "--model.model.init_args.batch_norm=true")
    assert code == 0
    assert {result["engine"] for result in results(tmp_path / "out").values()} == {"batched"}, text


def test_trials_that_differ_in_the_network_are_separate_stacks(config, tmp_path):
    grid = (f"--grid.{LR}=[0.01, 0.02]", "--grid.model.model.init_args.widths=[[8], [8, 4]]")
    code, text = run(config, tmp_path / "out", *grid, "--tune.trials_per_stack=1")
    assert code == 0
    assert text.count("2 trials in 2 batches") == 2
    assert {result["engine"] for result in results(tmp_path / "out").values()} == {"batched"}


@pytest.mark.parametrize(("free", "batches"), [(300, 2), (10, 4), (1000, 0)])
def test_a_stack_takes_four_fifths_of_the_free_memory_and_one_trial_always_fits(
    config, tmp_path, monkeypatch, free, batches
):
    monkeypatch.setattr(engines, "trial_bytes", lambda *arguments: 100)
    monkeypatch.setattr(engines, "available_bytes", lambda device: free)
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02, 0.03, 0.04]")
    assert code == 0
    assert (f"4 trials in {batches} batches" in text) == (batches > 0)
    assert len(results(tmp_path / "out")) == 4


def test_auto_says_what_it_chose(config, tmp_path):
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01, 0.02, 0.03]", engine="auto")
    assert code == 0
    assert "note: engine batched: the trials can be stacked" in text


def test_values_out_of_range_are_refused_before_the_first_trial(config, tmp_path):
    with pytest.raises(ValueError, match=r"grid: lr=-0.5: .*-0.5"):
        run(config, tmp_path / "out", f"--grid.{LR}=[0.01, -0.5]")
    assert not (tmp_path / "out").exists(), "a refused grid leaves nothing, so that the corrected one is not refused"


def test_a_grid_where_everything_diverges_has_no_winner(config, tmp_path):
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[1e30, 1e31]")
    assert code == 1
    assert "no trial ended well; try smaller learning rates" in text
    assert not (tmp_path / "out" / "best.ckpt").exists()
    assert all(math.isnan(Store(tmp_path / "out").outcome(key).score) for key in results(tmp_path / "out"))


def test_an_interruption_says_how_to_go_on(config, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="0 of 1 trials are done; the same command goes on"):
        run(config, tmp_path / "out", f"--grid.{LR}=[0.01]", engine="local")


def test_the_command_explains_itself(capsys):
    assert main(["tune", "--help", "all"]) == 0
    text = capsys.readouterr().out
    assert "--grid.OPTION" in text
    assert "--tune.keep_checkpoints" in text


@pytest.mark.slow
def test_a_trial_may_take_two_processes(config, tmp_path):
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1")
    code, text = run(config, tmp_path / "out", f"--grid.{LR}=[0.01]", *options)
    assert code == 0, text
    assert "trained one by one: trainer.devices=2" in text
    assert [result["status"] for result in results(tmp_path / "out").values()] == ["done"]


def test_trials_are_ranked_by_what_their_pruned_networks_reach(config, tmp_path):
    out = tmp_path / "out"
    options = (f"--grid.{LR}=[0.03, 0.003, 1e30]", "--tune.metric=pruned_top1", "--tune.amount=0.8")
    code, text = run(config, out, *options)
    assert code == 0
    found = {path.parent.name: json.loads(path.read_text())["values"] for path in out.glob("trials/*/pruned.json")}
    assert len(found) == 2, "a diverged trial has no network to prune"
    best = max(found, key=lambda key: found[key]["pruned_top1"])
    assert [path.parent.name for path in out.glob("trials/*/best.ckpt")] == [best]
    classifier = ImageClassifier.load_from_checkpoint(out / "best.ckpt", weights_only=True).eval()
    data = DigitsDataModule(batch_size=64)
    narrow = mlprank.prune(classifier.model, data, amount=0.8).model
    with torch.no_grad():
        correct = sum((narrow(x).argmax(1) == y).sum().item() for x, y in data.val_dataloader())
    assert correct / 288 == pytest.approx(found[best]["pruned_top1"])
    assert "pruned_top1" in text
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert sum(row["pruned_top1"] != "nan" for row in rows) == 2
    (out / "trials" / best / "pruned.json").unlink()  # a search that was killed before it measured
    assert run(config, out, *options)[0] == 0
    assert json.loads((out / "trials" / best / "pruned.json").read_text())["values"] == found[best]


@pytest.mark.slow
def test_trials_are_ranked_by_the_smallest_network_that_loses_no_more(config, tmp_path):
    out = tmp_path / "out"
    code, text = run(config, out, f"--grid.{LR}=[0.03, 0.003]", "--tune.metric=pruned_top1", "--tune.max_drop=3")
    assert code == 0, text
    for path in out.glob("trials/*/pruned.json"):
        found = json.loads(path.read_text())["values"]
        dense = Store(out).outcome(path.parent.name).score
        assert found["pruned_top1"] >= dense - 0.03 - 1e-6
        assert found["pruned_parameters"] < 64 * 12 + 12 + 12 * 10 + 10
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert all(float(row["pruned_parameters"]) > 0 for row in rows)
    assert "pruned_parameters" in text
