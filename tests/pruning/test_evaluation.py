"""What is printed when a pruning has ended."""

from pathlib import Path

from mlprank.pruning.evaluation import print_pruning


def printed(capsys, dense: Path, config: Path) -> str:
    print_pruning([], [{"pruned network": Path("runs/a/pruned.ckpt")}], dense=dense, config=config)
    return capsys.readouterr().out


def test_a_dense_checkpoint_below_the_current_directory_is_named_from_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = Path("config.yaml")
    config.touch()
    text = printed(capsys, tmp_path / "runs" / "best.ckpt", config)
    assert "  dense network   runs/best.ckpt\n" in text
    assert "Next: mlprank prune --config config.yaml --ckpt_path runs/best.ckpt --amount 0.5" in text


def test_a_dense_checkpoint_elsewhere_keeps_its_path(tmp_path, monkeypatch, capsys):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    elsewhere = tmp_path / "elsewhere" / "best.ckpt"
    assert f"dense network   {elsewhere}\n" in printed(capsys, elsewhere, Path("config.yaml"))
