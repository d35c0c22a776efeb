import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from mlprank.models.schedule import WarmUp


def _batches(num: int = 64, *, soft: bool = False, classes: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 1, 2, 2, generator=generator)
    targets: Tensor = images.flatten(1)[:, :classes].argmax(dim=1)
    if soft:
        targets = F.one_hot(targets, classes) * 0.8 + 0.2 / classes
    return DataLoader(TensorDataset(images, targets), batch_size=16)


def _trainer(root: Path, epochs: int = 2, **kwargs: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=root, max_epochs=epochs, **{**quiet, "enable_checkpointing": False, **kwargs})


def _classifier(**kwargs: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(MLP(4, [8], 3), **{"optimizer": partial(Adam, lr=0.05), **kwargs})


def test_logged_values_equal_those_computed_over_the_whole_split(tmp_path: Path) -> None:
    module = _classifier(num_classes=3, label_smoothing=0.1)
    trainer = _trainer(tmp_path)
    trainer.fit(module, _batches(60), _batches(50))
    images, targets = _batches(50).dataset.tensors  # type: ignore[attr-defined]
    logits = module(images)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(
        F.cross_entropy(logits, targets).item(), rel=1e-5
    )
    expected = (logits.argmax(1) == targets).float().mean().item()
    assert trainer.callback_metrics["val_top1"].item() == pytest.approx(expected)
    assert trainer.callback_metrics["val_top5"].item() == 1.0, "three classes: every target is among the top five"
    assert {"train_loss", "lr"} <= set(trainer.callback_metrics)


def test_train_loss_is_the_mean_over_the_samples_of_the_epoch(tmp_path: Path) -> None:
    module = _classifier(optimizer=partial(SGD, lr=0.0))
    trainer = _trainer(tmp_path, epochs=1)
    trainer.fit(module, _batches(50))
    images, targets = _batches(50).dataset.tensors  # type: ignore[attr-defined]
    expected = F.cross_entropy(module(images), targets).item()
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_soft_targets_of_mixup_train_it(tmp_path: Path) -> None:
    module = _classifier(label_smoothing=0.1)
    _trainer(tmp_path, epochs=30).fit(module, _batches(soft=True))
    [result] = _trainer(tmp_path).test(module, _batches(), verbose=False)
    assert result["test_top1"] > 0.9


@pytest.mark.parametrize(
    "scheduler", [None, partial(StepLR, step_size=1, gamma=0.1), lambda optimizer: StepLR(optimizer, 1)]
)
def test_a_checkpoint_is_plain_and_rebuilds_the_classifier_alone(tmp_path: Path, scheduler: Any) -> None:
    module = _classifier(lr_scheduler=scheduler, label_smoothing=0.2, bias_weight_decay=0.0)
    trainer = _trainer(tmp_path, enable_checkpointing=True)
    trainer.fit(module, _batches(), _batches())
    path = tmp_path / "dense.ckpt"
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["model"]["class_path"] == "mlprank.models.MLP"
    again = ImageClassifier.load_from_checkpoint(path)
    torch.testing.assert_close(again.state_dict(), module.state_dict())
    assert (again.label_smoothing, again.bias_weight_decay) == (0.2, 0.0)
    assert dict(again.hparams) == dict(module.hparams)
    assert type(again._build_optimizer()[0]) is Adam


class _Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def test_a_network_of_an_unknown_class_is_loaded_into_an_instance(tmp_path: Path) -> None:
    module = ImageClassifier(_Foreign())
    trainer = _trainer(tmp_path, epochs=1)
    trainer.fit(module, _batches())
    trainer.save_checkpoint(tmp_path / "foreign.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "foreign.ckpt", model=_Foreign())
    torch.testing.assert_close(again.state_dict(), module.state_dict())


def test_the_checkpoint_of_another_network_is_refused_by_layer_and_sizes(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, epochs=1)
    trainer.fit(_classifier(), _batches())
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(ValueError, match=r"another network: model.fc1.weight is 8×4 there and 9×4 here"):
        _trainer(tmp_path).test(ImageClassifier(MLP(4, [9], 3)), _batches(), ckpt_path=tmp_path / "dense.ckpt")


def test_masks_survive_a_checkpoint_and_a_dense_one_takes_them_off(tmp_path: Path) -> None:
    module = _classifier()
    trainer = _trainer(tmp_path, epochs=1)
    trainer.fit(module, _batches())
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    dense = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    prune.ln_structured(module.model.fc1, "weight", amount=0.5, n=1, dim=0)
    trainer.save_checkpoint(tmp_path / "masked.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "masked.ckpt")
    assert int(again.model.fc1.weight_mask.sum()) == 16
    images = torch.randn(5, 4)
    torch.testing.assert_close(again(images), module(images))
    _trainer(tmp_path).test(again, _batches(), ckpt_path=tmp_path / "dense.ckpt", verbose=False)
    torch.testing.assert_close(dict(again.state_dict()), dense)


def _narrow_checkpoint(root: Path) -> tuple[Path, ImageClassifier]:
    """Train a dense network, keep neurons 1, 4 and 6 by hand, and write the checkpoint of the narrow one."""
    trainer = _trainer(root, epochs=1)
    module = _classifier()
    trainer.fit(module, _batches())
    trainer.save_checkpoint(root / "dense.ckpt")
    checkpoint = torch.load(root / "dense.ckpt", weights_only=True)
    kept = torch.tensor([1, 4, 6])
    slices = {"model.fc1.weight": {0: kept}, "model.fc1.bias": {0: kept}, "model.fc_last.weight": {1: kept}}
    for name, dims in slices.items():
        for dim, index in dims.items():
            checkpoint["state_dict"][name] = checkpoint["state_dict"][name].index_select(dim, index)
    checkpoint["mlprank"] = {"slices": slices, "amount": 0.6}
    torch.save(checkpoint, root / "pruned.ckpt")
    return root / "pruned.ckpt", module


def test_a_pruned_checkpoint_rebuilds_the_narrow_classifier_alone_and_is_carried_on(tmp_path: Path) -> None:
    path, dense = _narrow_checkpoint(tmp_path)
    narrow = ImageClassifier.load_from_checkpoint(path)
    assert narrow.model.fc1.weight.shape == (3, 4)
    images = torch.randn(5, 4)
    kept = [1, 4, 6]
    hidden = F.relu(F.linear(images, dense.model.fc1.weight[kept], dense.model.fc1.bias[kept]))
    torch.testing.assert_close(
        narrow(images), F.linear(hidden, dense.model.fc_last.weight[:, kept], dense.model.fc_last.bias)
    )
    trainer = _trainer(tmp_path, epochs=1)
    trainer.fit(narrow, _batches())
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "again.ckpt")
    torch.testing.assert_close(dict(again.state_dict()), dict(narrow.state_dict()))
    assert again.pruning is not None
    assert again.pruning["amount"] == 0.6


def test_a_dense_module_tests_a_pruned_checkpoint_and_then_a_dense_one(tmp_path: Path) -> None:
    path, dense = _narrow_checkpoint(tmp_path)
    module = _classifier()
    for _ in range(2):
        [pruned] = _trainer(tmp_path).test(module, _batches(), ckpt_path=path, verbose=False)
        assert module.model.fc1.out_features == 3
    [whole] = _trainer(tmp_path).test(module, _batches(), ckpt_path=tmp_path / "dense.ckpt", verbose=False)
    [expected] = _trainer(tmp_path).test(dense, _batches(), verbose=False)
    assert whole == expected
    assert whole != pruned


def test_a_loss_that_is_not_finite_stops_with_step_and_rate_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    batches = _batches()
    module = _classifier(optimizer=partial(SGD, lr=0.5))
    checkpoint = ModelCheckpoint(tmp_path, filename="kept", save_last=True, monitor="val_loss")

    def poison(epoch: int) -> None:
        if epoch == 1:
            batches.dataset.tensors[0][40] = torch.nan  # type: ignore[attr-defined]

    module.on_train_start = lambda: None  # type: ignore[method-assign]
    original = module.on_train_epoch_start
    module.on_train_epoch_start = lambda: (poison(module.current_epoch), original())[1]  # type: ignore[method-assign,func-returns-value]
    trainer = _trainer(tmp_path, epochs=3, callbacks=[checkpoint], enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=r"became nan at step 6 \(epoch 1, lr=0.5\); try a smaller learning"):
        trainer.fit(module, batches, _batches())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


@pytest.mark.parametrize("command", ["test", "validate"])
def test_testing_ends_with_an_error_where_the_loss_is_not_finite(tmp_path: Path, command: str) -> None:
    module = _classifier()
    nn.init.constant_(module.model.fc1.weight, torch.nan)
    with pytest.raises(FloatingPointError, match=rf"the loss is nan on the {command[:3]}.* data.*--ckpt_path"):
        getattr(_trainer(tmp_path), command)(module, _batches(), verbose=False)


def test_wrong_arguments_are_named_when_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 must lie in \[0, 1\)"):
        _classifier(label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"lr=nan must be a finite number"):
        _classifier(optimizer=partial(SGD, lr=float("nan")))
    with pytest.raises(ValueError, match=r"num_classes=None must be a positive integer; ReLU does not tell it"):
        ImageClassifier(nn.ReLU(), optimizer=partial(SGD, lr=0.1))


def test_predict_gives_probabilities_with_or_without_targets() -> None:
    module = _classifier()
    images = torch.randn(4, 1, 2, 2)
    expected = module(images).softmax(1)
    torch.testing.assert_close(module.predict_step((images, torch.zeros(4)), 0), expected)
    torch.testing.assert_close(module.predict_step(images, 0), expected)


def test_a_malformed_record_of_pruning_is_refused() -> None:
    module = _classifier()
    checkpoint = {"state_dict": module.state_dict(), "mlprank": {"amount": 0.5}}
    with pytest.raises(ValueError, match=r"entry 'mlprank' has no 'slices'"):
        module.on_load_checkpoint(checkpoint)
    buffer = io.BytesIO()
    torch.save(dict(module.hparams), buffer)
    assert buffer.tell() > 0


def test_a_schedule_is_tried_no_further_than_every_run_goes() -> None:
    rates = [1.0, 0.5]
    tabled = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: rates[epoch])
    ImageClassifier(MLP(4, [3], 2), lr_scheduler=tabled)
    with pytest.raises(ValueError, match="StepLR fails after epoch 0"):
        ImageClassifier(MLP(4, [3], 2), lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=0))
    with pytest.raises(ValueError, match=r"WarmUp fails after epoch 2: .*modulo by zero; check its arguments"):
        ImageClassifier(
            MLP(4, [3], 2),
            lr_scheduler=partial(WarmUp, after=partial(torch.optim.lr_scheduler.StepLR, step_size=0), epochs=3),
        )
