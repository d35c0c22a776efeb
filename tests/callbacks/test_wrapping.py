"""Precisions and `torch.compile`: what training wraps around a network does not reach the pruned one."""

import pytest
import torch
from torch import nn

import mlprank
from mlprank.callbacks import Linear, PruningCallback
from mlprank.surgery.masks import masked_rows
from tests.callbacks.projects import Blobs, Project, blobs, pruned_rows, trainer_for


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_call(module):
    module.compile(backend="eager")
    return module


def compiled_network(module):
    module.net = torch.compile(module.net, backend="eager")
    return module


def compiled_layer(module):
    module.net[2] = torch.compile(module.net[2], backend="eager")
    return module


def compiled_whole(module):
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize(
    ("wrap", "schedule"),
    [
        pytest.param(compiled_call, Linear(0, 2), marks=pytest.mark.slow),
        *(
            pytest.param(wrap, None, marks=pytest.mark.slow)
            for wrap in (compiled_call, compiled_network, compiled_whole)
        ),
        *(pytest.param(wrap, Linear(0, 2), marks=pytest.mark.slow) for wrap in (compiled_layer, compiled_network)),
    ],
)
def test_compiled_modules_are_pruned_under_their_plain_names(tmp_path, wrap, schedule):
    module = Project()
    callback = PruningCallback(0.5, schedule=schedule)
    trainer = trainer_for(tmp_path, callback, max_epochs=4 if schedule else 1)
    trainer.fit(wrap(module), datamodule=Blobs())
    result = callback.evaluations[0].result
    assert list(result.masks) == ["net.0", "net.2"]
    assert {name.replace("_orig_mod.", "") for name in masked_rows(module)} == {
        f"net.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")
    }
    inputs = blobs(seed=5).tensors[0]
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt", Project())
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(inputs), narrow(inputs), atol=1e-5, rtol=0)
    tested = trainer.test(module, datamodule=Blobs(), verbose=False)[0]["test_accuracy"]
    assert tested == pytest.approx(callback.evaluations[0].after.top_k[1])
    assert [int(rows) for rows in pruned_rows(module).values()] == [8, 8, 0]


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [compiled_call, compiled_network, compiled_whole])
def test_compiled_training_obeys_masks_and_trains_on(tmp_path, wrap):
    plain, compiled = Project(), Project()
    compiled.load_state_dict(plain.state_dict())
    data = torch.utils.data.DataLoader(blobs(), batch_size=32)
    for name, module in (("plain", plain), ("compiled", wrap(compiled))):
        callback = PruningCallback(0.5, schedule=Linear(1, 2), dirpath=str(tmp_path / name))
        trainer_for(tmp_path, callback, max_epochs=4, enable_checkpointing=False).fit(module, data)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("precision", "schedule"),
    [
        ("bf16-true", Linear(0, 1)),
        ("bf16-mixed", None),
        pytest.param("bf16-true", None, marks=pytest.mark.slow),
        pytest.param("bf16-mixed", Linear(0, 1), marks=pytest.mark.slow),
        pytest.param("64-true", None, marks=pytest.mark.slow),
        pytest.param("64-true", Linear(0, 1), marks=pytest.mark.slow),
    ],
)
def test_every_precision_is_pruned_in_its_own(tmp_path, precision, schedule):
    module, callback = Project(), PruningCallback(0.5, schedule=schedule)
    trainer = trainer_for(tmp_path, callback, max_epochs=2, precision=precision)
    trainer.fit(module, datamodule=Blobs())
    dtype = {"bf16-true": torch.bfloat16, "bf16-mixed": torch.float32, "64-true": torch.float64}[precision]
    narrow = callback.evaluations[0].result.model
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
    assert trainer.test(module, datamodule=Blobs(), verbose=False)[0]["test_accuracy"] > 0.5


@pytest.mark.slow
def test_a_compiled_network_with_functional_weights_is_refreshed(tmp_path):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.fc2(torch.relu(torch.nn.functional.linear(x, self.fc1.weight, self.fc1.bias)))

    module = Project()
    module.net = torch.compile(Functional(), backend="eager")
    callback = PruningCallback(0.5, schedule=Linear(0, 1))
    trainer_for(tmp_path, callback, max_epochs=3).fit(module, datamodule=Blobs())
    assert callback.evaluations[0].result.achieved == 0.5
    assert callback.evaluations[0].after.top_k[1] > 0.5
