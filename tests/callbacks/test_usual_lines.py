"""What people write after `fit`, and what they hang on their modules: it works under a PruningCallback."""

import copy
import functools
import json
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.nn import functional as F

from mlprank.callbacks import Linear, PruningCallback
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from tests.callbacks.projects import Blobs, Fixed, Project, blobs, pruned_rows, trainer_for

INPUTS = blobs(seed=5).tensors[0]
HALF = {"net.0": 8, "net.2": 8, "net.4": 0}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A module after fit with a schedule, and the run's directory."""
    directory = tmp_path_factory.mktemp("run")
    module, callback = Project(), PruningCallback(0.5, schedule=Linear(0, 1))
    keep = ModelCheckpoint(directory / "all", filename="{epoch}", save_top_k=-1)
    trainer = trainer_for(directory, callback, keep, max_epochs=3)
    trainer.fit(module, datamodule=Blobs())
    return module, trainer, directory


def test_the_best_checkpoint_is_loaded_by_a_class_that_knows_nothing_of_masks(masked):
    module, trainer, _ = masked
    loaded = Project.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, map_location="cpu")
    assert pruned_rows(loaded) == HALF
    torch.testing.assert_close(loaded(INPUTS), module.eval()(INPUTS), atol=0, rtol=0)


@pytest.mark.parametrize("schedule", [None, Linear(0, 0)])
def test_a_checkpoint_of_a_masked_module_has_the_modules_own_keys(tmp_path, schedule):
    callback = PruningCallback(0.5, schedule=schedule)
    trainer = trainer_for(tmp_path, callback, max_epochs=2)
    trainer.fit(Project(), datamodule=Blobs())
    masked = torch.load(tmp_path / "masked.ckpt", weights_only=True)["state_dict"]
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "masked.ckpt")
    assert {name: value.shape for name, value in masked.items()} == {
        name: value.shape for name, value in Project().state_dict().items()
    }
    assert int((masked["net.0.weight"] == 0).all(1).sum()) == 8


def test_checkpoints_from_the_middle_have_the_modules_own_keys(masked):
    *_, directory = masked
    for epoch, rows in ((0, 0), (1, 8), (2, 8)):
        loaded = Project.load_from_checkpoint(directory / "all" / f"epoch={epoch}.ckpt", map_location="cpu")
        assert pruned_rows(loaded)["net.0"] == rows


def test_a_fresh_trainer_tests_the_best_checkpoint(masked, tmp_path):
    module, trainer, _ = masked
    best = trainer.checkpoint_callback.best_model_path
    expected = trainer_for(tmp_path).test(module, datamodule=Blobs(), verbose=False)
    for fresh in (Project(), module):
        assert trainer_for(tmp_path).test(fresh, datamodule=Blobs(), ckpt_path=best, verbose=False) == expected


def test_the_state_dict_goes_into_a_fresh_module_and_back(masked):
    module, *_ = masked
    fresh = Project()
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh.eval()(INPUTS), module.eval()(INPUTS), atol=0, rtol=0)
    module.load_state_dict(fresh.state_dict())
    assert set(dict(module.named_buffers())) >= {"net.0.weight_mask"}  # the masks hold on
    assert pruned_rows(module) == HALF


@pytest.mark.parametrize("place", ["untouched", "trained", "tested", "one layer"])
def test_a_masked_module_can_be_copied_at_any_time(masked, tmp_path, place):
    module, *_ = masked
    if place == "trained":
        module.train()(INPUTS).sum().backward()
    if place == "tested":
        trainer_for(tmp_path).test(module, datamodule=Blobs(), verbose=False)
    copied = copy.deepcopy(module.net[2] if place == "one layer" else module)
    if place == "one layer":
        assert int((copied.weight == 0).all(1).sum()) == 8
        return
    torch.testing.assert_close(copied.eval()(INPUTS), module.eval()(INPUTS), atol=0, rtol=0)
    before = module(INPUTS).detach()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    assert pruned_rows(copied)["net.0"] == 8  # masks of its own
    torch.testing.assert_close(module(INPUTS), before, atol=0, rtol=0)
    again = copy.deepcopy(copied.train())
    assert pruned_rows(again)["net.0"] == 8


def test_a_module_can_be_copied_after_every_batch(tmp_path):
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.last = copy.deepcopy(pl_module)

    copies = Copies()
    callback = PruningCallback(0.5, schedule=Linear(0, 0))
    trainer_for(tmp_path, callback, copies, max_epochs=1).fit(Project(), datamodule=Blobs())
    assert pruned_rows(copies.last) == HALF


def test_a_loss_may_read_masked_weights_after_the_forward_pass(tmp_path):
    class Regularised(Project):
        def training_step(self, batch, batch_idx):
            return 0.0 * super().training_step(batch, batch_idx) + self.net[0].weight.pow(2).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Regularised()
    before = float(module.net[0].weight.detach().abs().sum())
    callback = PruningCallback(0.25, schedule=Linear(0, 0), compensation="zero")
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, datamodule=Blobs())
    assert float(module.net[0].weight.abs().sum()) < 0.5 * before


class Particular(Project):
    """Its hyper-parameters hold a module and a partial function; it gets worse after its first epoch."""

    def __init__(self, net: nn.Module, optimizer: object) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            nn.init.normal_(self.net[0].weight, std=20)

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters())


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance of `nn.Module`")
def test_the_best_checkpoint_counts_whatever_hyper_parameters_it_holds(tmp_path, caplog):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    module = Particular(net, functools.partial(torch.optim.Adam, lr=0.01))
    callback = PruningCallback(0.0)
    trainer_for(tmp_path, callback, ModelCheckpoint(monitor="val_loss"), max_epochs=2).fit(module, datamodule=Blobs())
    state = torch.load(callback.dense_path, weights_only=False)
    assert state["epoch"] == 0
    torch.testing.assert_close(module.net[0].weight, state["state_dict"]["net.0.weight"])
    assert "Before: the dense network of epoch 1, the best by val_loss" in caplog.text
    assert "passed over" not in caplog.text
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["provenance"]["dense"].startswith("the dense network of epoch 1, the best by val_loss")


def test_a_best_checkpoint_that_lacks_weights_is_passed_over_and_the_last_weights_are_said_to_be_the_dense_ones(
    tmp_path, caplog
):
    class Partial(Project):
        def on_save_checkpoint(self, checkpoint):
            del checkpoint["state_dict"]["net.0.weight"]

    module, callback = Partial(), PruningCallback(0.5)
    with pytest.warns(UserWarning, match=r"\.ckpt: Error.* Missing key.* \"net.0.weight\".*it is passed over"):
        trainer_for(tmp_path, callback, max_epochs=2).fit(module, datamodule=Blobs())
    assert callback.dense_text == "the dense network after 2 epochs, the last"
    assert pruned_rows(module) == HALF


def test_a_schedule_is_compared_with_the_best_dense_epoch(tmp_path, caplog):
    class Worsens(Project):
        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                nn.init.normal_(self.net[0].weight, std=20)

        def on_train_batch_start(self, batch, batch_idx):
            self.at = (self.current_epoch, batch_idx)

    callback = PruningCallback(0.5, schedule=Linear(3, 3))
    trainer_for(tmp_path, callback, ModelCheckpoint(monitor="val_loss"), max_epochs=5).fit(
        Worsens(), datamodule=Blobs()
    )
    assert torch.load(callback.dense_path, weights_only=True)["epoch"] == 1
    assert "Before: the dense network of epoch 2, the best by val_loss" in caplog.text
    assert "before pruning began. After: the pruned network, trained on under masks since then" in caplog.text
    dense = Project.load_from_checkpoint(callback.dense_path, map_location="cpu")
    tested = trainer_for(tmp_path).test(dense, datamodule=Blobs(), verbose=False)[0]["test_accuracy"]
    assert callback.evaluations[0].before.top_k[1] == pytest.approx(tested)


def test_a_schedule_says_epoch_by_epoch_what_it_pruned(tmp_path, caplog):
    callback = PruningCallback(0.5, schedule=Linear(1, 3))
    trainer_for(tmp_path, callback, max_epochs=5).fit(Project(), datamodule=Blobs())
    lines = [
        "Epoch 3: 25.0% of the neurons of the prunable layers are pruned: net.0 16 to 12, net.2 16 to 12",
        "Epoch 4: 50.0% of the neurons of the prunable layers are pruned: net.0 16 to 8, net.2 16 to 8",
    ]
    before = "Before: the dense network after 2 epochs, when pruning began"
    after = "After: the pruned network, trained on under masks since then"
    assert f"{before}. {after}.\nPruned while training:\n  {lines[0]}\n  {lines[1]}" in caplog.text
    recorded = json.loads((tmp_path / "metrics.json").read_text())["provenance"]["pruned_in_training"]
    assert [(each["epoch"], each["achieved"], each["widths"]["net.0"]) for each in recorded] == [
        (2, 0.25, [16, 12]),
        (3, 0.5, [16, 8]),
    ]


class Laden(Project):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.stream = (number for number in range(10**9))
        self.file = open(__file__)  # noqa: SIM115

    def training_step(self, batch, batch_idx):
        self.loss = super().training_step(batch, batch_idx)
        self.history = [*getattr(self, "history", [])[-3:], self.loss]
        return self.loss


@pytest.mark.parametrize("options", [{}, {"network": "net"}, {"schedule": Linear(0, 1)}])
def test_modules_hold_locks_files_generators_and_losses(tmp_path, options):
    module = Laden()
    trainer_for(tmp_path, PruningCallback(0.5, **options), max_epochs=2).fit(module, datamodule=Blobs())
    assert pruned_rows(module) == HALF
    assert module.loss.grad_fn is not None  # nobody took it away
    assert next(module.stream) == 0
    module.file.close()


class Watched(Project):
    """A forward hook that looks at numbers, as observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        for layer in self.net:
            layer.register_forward_hook(lambda _, __, output: self.seen.append(output.mean().item()))


def test_metrics_count_nothing_that_pruning_reads(tmp_path):
    logged = []
    for callbacks in ([], [PruningCallback(0.5, apply="none", dirpath=str(tmp_path))]):
        torch.manual_seed(0)
        module, trainer = ImageClassifier(MLP(8, [16], 3)), trainer_for(tmp_path, *callbacks, max_epochs=1)
        trainer.fit(module, datamodule=Fixed())
        logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    assert logged[0] == logged[1]


def test_observing_hooks_change_no_mask(tmp_path):
    masks = []
    for cls in (Project, Watched):
        torch.manual_seed(0)
        module, callback = cls(), PruningCallback(0.5, dirpath=str(tmp_path / cls.__name__))
        loader = torch.utils.data.DataLoader(blobs(), batch_size=32)
        options = {"max_epochs": 1, "enable_checkpointing": False, "limit_val_batches": 0}
        trainer_for(tmp_path, callback, **options).fit(module, loader)
        masks.append(callback.evaluations[0].result.masks)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


@pytest.mark.parametrize("options", [{}, {"schedule": Linear(0, 1)}, {"max_drop": 50.0, "amount": 0.5}])
def test_observing_hooks_see_training_and_nothing_of_pruning(tmp_path, options):
    module = Watched()
    hooks = [dict(layer._forward_hooks) for layer in module.net]
    loader = torch.utils.data.DataLoader(blobs(), batch_size=32)
    trainer = trainer_for(tmp_path, PruningCallback(**options), max_epochs=2, enable_checkpointing=False)
    trainer.fit(module, loader, Blobs().val_dataloader())
    assert len(module.seen) == 5 * (2 * 8 + 2 * 4)  # layers, training steps and validation batches of two epochs
    assert [
        {key: hook for key, hook in layer._forward_hooks.items() if key in own}
        for layer, own in zip(module.net, hooks, strict=True)
    ] == hooks


def test_a_hook_that_changes_what_the_network_computes_is_a_part_of_it(tmp_path):
    module, callback = Project(), PruningCallback(0.5, apply="none", measure="activation")
    gate = (torch.arange(16) % 2).float()
    module.net[1].register_forward_hook(lambda _, __, output: output * gate)
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, datamodule=Blobs())
    result = callback.evaluations[0].result
    with torch.no_grad():
        expected = module.eval()(INPUTS)
        torch.testing.assert_close(result.dense.eval()(INPUTS), expected, atol=1e-6, rtol=1e-5)
        module.net[1]._forward_hooks.clear()
        assert not torch.allclose(module(INPUTS), expected, atol=0.01)


@pytest.mark.slow
def test_wandb_may_watch_the_module(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(save_dir=str(tmp_path), project="watching", offline=True)
    module = Project()
    logger.watch(module, log="all", log_freq=1)
    callback = PruningCallback(0.5, schedule=Linear(0, 1))
    trainer_for(tmp_path, callback, max_epochs=2, logger=logger).fit(module, datamodule=Blobs())
    logger.experiment.finish()
    assert pruned_rows(module) == HALF


FOREIGN = """
    import pytorch_lightning as pl, torch
    from pytorch_lightning.callbacks import ModelCheckpoint, EMAWeightAveraging
    from pytorch_lightning.loggers import CSVLogger
    from torch.utils.data import DataLoader
    import mlprank.pruning.evaluation
    from mlprank.callbacks import Linear, PruningCallback
    from tests.callbacks.projects import blobs

    mlprank.pruning.evaluation._LATENCY_BUDGET_S = 0.01

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(blobs(), batch_size=32)
        def val_dataloader(self):
            return DataLoader(blobs(seed=1), batch_size=60)

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.training_step(batch, batch_idx))
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    for schedule in (None, Linear(0, 1)):
        module, callback = Net(), PruningCallback(0.5, schedule=schedule)
        averaging = [] if schedule is None else [EMAWeightAveraging(decay=0.5)]
        trainer = pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=CSVLogger("logs"), enable_progress_bar=False, log_every_n_steps=1,
            callbacks=[callback, ModelCheckpoint(monitor="val_loss"), *averaging],
        )
        trainer.fit(module, datamodule=Data())
        assert callback.evaluations[0].split == "validation"
        assert int((module.net[0].weight == 0).all(1).sum()) == 8
        assert trainer.checkpoint_callback.best_model_path.endswith("masked.ckpt")
        assert "version_" in str(callback.files[0]["pruned network"])
        Net.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
"""


@pytest.mark.slow
def test_pytorch_lightning_is_the_same_to_it(tmp_path):
    script = textwrap.dedent(FOREIGN)
    command = [sys.executable, "-c", f"import sys, os; sys.path.insert(0, {sys.path[0]!r} or os.getcwd())\n{script}"]
    environment = {**__import__("os").environ, "PYTHONPATH": str(__import__("pathlib").Path.cwd())}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_whose_results_are_lost_are_refused_before_training(tmp_path, strategy):
    module = Project()
    before = copy.deepcopy(module.state_dict())
    trainer = trainer_for(tmp_path, PruningCallback(0.5), strategy=strategy, devices=2)
    with pytest.raises(ValueError, match=r"strategy: DDPStrategy trains in processes of its own.*devices=1"):
        trainer.fit(module, datamodule=Blobs())
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Prepares(LightningModule):
    """What its network gets is not what a batch holds."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key = key
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        features, labels = (batch["x"], batch["y"]) if self.key else batch
        self.log("before", 1.0)
        return F.cross_entropy(self.net(features * 100 + 7), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader(*, as_dict=False):
    def collate(items):
        features, labels = (torch.stack(each) for each in zip(*items, strict=True))
        return {"x": features, "y": labels} if as_dict else (features, labels)

    return torch.utils.data.DataLoader(blobs(), batch_size=32, collate_fn=collate)


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_inputs_are_those_that_the_network_gets_in_training(tmp_path, as_dict):
    module, callback = Prepares("x" if as_dict else None), PruningCallback(0.5)
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, loader(as_dict=as_dict))
    expected = next(iter(loader()))[0][:1] * 100 + 7
    torch.testing.assert_close(callback.evaluations[0].result.example, expected)


def test_batches_go_through_the_modules_own_transfer_hooks_although_there_is_a_datamodule(tmp_path):
    class Scales(Project):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 10, batch[1]

    module, callback = Scales(), PruningCallback(0.5)
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, datamodule=Fixed())
    expected = next(iter(Fixed().train_dataloader()))[0][:1] * 10
    torch.testing.assert_close(callback.evaluations[0].result.example, expected)


def test_a_step_that_needs_its_loop_is_no_secret(tmp_path):
    class Stateful(Project):
        def on_train_batch_start(self, batch, batch_idx):
            self.shift = 7

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] + self.shift, batch[1]), batch_idx)

    message = r"Stateful.training_step cannot be run outside of its loop \(.*no attribute 'shift'.*network_inputs="
    with pytest.warns(UserWarning, match=message):
        trainer_for(tmp_path, PruningCallback(0.5), max_epochs=1).fit(Stateful(), datamodule=Blobs())


@pytest.mark.parametrize("optimizers", [1, 2])
def test_the_inputs_are_those_of_training_under_manual_optimization_too(tmp_path, optimizers):
    class Manual(Prepares):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            given = self.optimizers()
            for optimizer in given if optimizers > 1 else [given]:
                optimizer.zero_grad()
            self.toggle_optimizer(given[0] if optimizers > 1 else given)
            self.manual_backward(F.cross_entropy(self.net(batch[0] * 100 + 7), batch[1]))
            self.untoggle_optimizer(given[0] if optimizers > 1 else given)
            (given[0] if optimizers > 1 else given).step()

        def configure_optimizers(self):
            return [torch.optim.Adam(self.parameters(), lr=0.01) for _ in range(optimizers)]

    module, callback = Manual(), PruningCallback(0.5)
    trainer = trainer_for(tmp_path, callback, max_epochs=1)
    trainer.fit(module, loader())
    assert trainer.global_step == 8
    torch.testing.assert_close(callback.evaluations[0].result.example, next(iter(loader()))[0][:1] * 100 + 7)


def features_of(batch):
    return batch["x"] * 2


@pytest.mark.parametrize("given", [features_of, "tests.callbacks.test_usual_lines.features_of"])
def test_a_function_may_say_what_the_networks_inputs_are(tmp_path, given):
    module, callback = Prepares("x"), PruningCallback(0.5, network_inputs=given)
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, loader(as_dict=True))
    torch.testing.assert_close(callback.evaluations[0].result.example, next(iter(loader()))[0][:1] * 2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "network_inputs=3 is not a function"),
        ("nowhere.at_all", ValueError, "network_inputs: nowhere cannot be imported"),
    ],
)
def test_what_is_not_a_function_of_batches_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        PruningCallback(network_inputs=given)


def test_what_pruning_will_refuse_is_refused_before_training(tmp_path):
    class Late(Blobs):
        """Test data without which nothing can be measured at the end."""

        def test_dataloader(self):
            raise FileNotFoundError("test.csv is not there")

    class Fragile(Project):
        def __init__(self):
            super().__init__()
            self.steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return super().training_step(batch, batch_idx)

    module = Fragile()
    with pytest.raises(FileNotFoundError, match=r"test.csv is not there"):
        trainer_for(tmp_path, PruningCallback(0.5)).fit(module, datamodule=Late())
    assert module.steps == 0


class TwoInputs(LightningModule):
    """Its network takes features and a mask; batches differ in length."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Masked()

    def training_step(self, batch, batch_idx):
        features, mask, labels = batch
        return F.cross_entropy(self.net(features, mask=mask), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, features, mask):
        hidden = self.other(self.one(features).relu()).relu() * mask.unsqueeze(-1)
        return self.head(hidden.sum(1))


def test_networks_of_several_inputs_and_batches_of_different_lengths_are_pruned(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(16, length, 8, generator=generator),
            torch.ones(16, length),
            torch.randint(3, (16,), generator=generator),
        )
        for length in (5, 7, 9)
    ]
    module, callback = TwoInputs(), PruningCallback(0.5)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, loader)
    assert pruned_rows(module)["net.one"] == 8
    result = callback.evaluations[0].result
    assert result.model.one.out_features == 8
    features, mask, _ = batches[2]
    with torch.no_grad():
        expected, got = (each.eval()(features, mask=mask) for each in (module.net, result.model))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
