import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mlprank.models import (
    MLP,
    MODELS,
    SixLayerMLP,
    TwoLayerMLP,
    get_model,
    load_published,
    load_weights,
    recognise,
    register_model,
)


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
    torch.save({"weights": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds no weights: .*it holds \['epoch', 'weights'\]"):
        load_published(tmp_path / "other.pth", "TwoLayerMLP")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth holds a list"):
        load_published(tmp_path / "list.pth", "TwoLayerMLP")


def test_a_wrong_name_lists_all_and_the_nearest() -> None:
    assert get_model("TwoLayerMLP") is TwoLayerMLP
    message = r"unknown model \"TwoLayersMLP\"; did you mean 'TwoLayerMLP'\? Known names: MLP, TwoLayerMLP,"
    with pytest.raises(ValueError, match=message):
        get_model("TwoLayersMLP")
    thesis = {"TwoLayerMLP", "ThreeLayerMLP", "SixLayerMLP", "TwelveLayerMLP"}
    assert set(MODELS) == {"MLP", *thesis, "FourLayerCNN", "ResNet18"}


def test_a_model_of_another_package_is_named_by_its_path_or_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "Foreign", None)
    del MODELS["Foreign"]  # and again when the test has ended
    assert get_model(f"{__name__}.Foreign") is Foreign
    register_model("Foreign", Foreign)
    assert get_model("Foreign") is Foreign
    with pytest.raises(ValueError, match=r'model name "MLP" is taken by MLP'):
        register_model("MLP", Foreign)
    with pytest.raises(TypeError, match=r"is not a subclass of Module"):
        register_model("Path", Path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is not a subclass of Module"):
        get_model("pathlib.Path")


class Foreign(nn.Module):
    """A network of another package."""


def test_weights_come_out_of_every_kind_of_file(tmp_path: Path) -> None:
    network = TwoLayerMLP()
    state = network.state_dict()
    folder = tmp_path / "artifacts" / "models" / "TwoLayerMLP"
    folder.mkdir(parents=True)
    published = {"model": state, "optimizer": {}, "epoch": 7, "args": argparse.Namespace(lr=0.1, opt="adam")}
    kinds = {
        "bare.pth": state,
        "compiled.pt": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "artifacts/models/TwoLayerMLP/model_7.pth": published,
        "lightning.ckpt": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 1},
    }
    for name, content in kinds.items():
        torch.save(content, tmp_path / name)
        torch.testing.assert_close(load_weights(tmp_path / name, "TwoLayerMLP").state_dict(), state)
        assert recognise(load_weights(tmp_path / name, "TwoLayerMLP").state_dict()) is TwoLayerMLP
    assert recognise(TwoLayerMLP(6, 3).state_dict()) is None


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
