import os
from pathlib import Path

import pytest
import torch

from mlprank.models import MLP, SixLayerMLP, TwoLayerMLP, load_published


def test_published_weights_load_by_name_and_give_the_same_logits(tmp_path: Path) -> None:
    model = SixLayerMLP().eval()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "six.pth")
    loaded = load_published(tmp_path / "six.pth", "SixLayerMLP")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), model(x))
    assert not loaded.training


def test_the_prefix_of_data_parallel_training_is_taken_off(tmp_path: Path) -> None:
    model = TwoLayerMLP(6, 3)
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "two.pth")
    loaded = load_published(tmp_path / "two.pth", TwoLayerMLP(6, 3))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())


def test_another_networks_checkpoint_names_the_layer_and_the_sizes(tmp_path: Path) -> None:
    torch.save({"model": TwoLayerMLP().state_dict()}, tmp_path / "two.pth")
    message = r"two.pth belongs to another network: linear_relu_stack.0.weight is 256×784 there and 512×784 here"
    with pytest.raises(ValueError, match=message + r".*these are the weights of a TwoLayerMLP"):
        load_published(tmp_path / "two.pth", "ThreeLayerMLP")
    with pytest.raises(ValueError, match=r"it lacks fc1.weight, .*; it has linear_relu_stack.0.weight, .* and 1 more"):
        load_published(tmp_path / "two.pth", MLP(4, [3], 2))


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none.pth does not exist"):
        load_published(tmp_path / "none.pth", "TwoLayerMLP")
    (tmp_path / "text.pth").write_bytes(b"hello, this is not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pth is damaged"):
        load_published(tmp_path / "text.pth", "TwoLayerMLP")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth is damaged"):
        load_published(tmp_path / "empty.pth", "TwoLayerMLP")
    torch.save({"model": TwoLayerMLP().state_dict()}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut.pth is damaged"):
        load_published(tmp_path / "cut.pth", "TwoLayerMLP")
    torch.save(TwoLayerMLP().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare.pth has no state dict under 'model' .*linear_relu_stack.0.bias"):
        load_published(tmp_path / "bare.pth", "TwoLayerMLP")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth holds a list"):
        load_published(tmp_path / "list.pth", "TwoLayerMLP")


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Runs()}, "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is damaged, or holds objects that would run code"):
        load_published("evil.pth", "TwoLayerMLP")
    assert not (tmp_path / "ran").exists()
