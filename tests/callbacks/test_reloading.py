"""A pruned file comes back narrow, in a process without the data and the callbacks, and works on."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mlprank
from mlprank.callbacks import PruningCallback
from tests.callbacks.projects import Blobs, Project, blobs, trainer_for

NETWORK = """
import torch
from torch import nn

class TheirNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)
"""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    module, callback = Project(), PruningCallback(0.5)
    trainer_for(directory, callback, max_epochs=1).fit(module, datamodule=Blobs())
    return directory / "pruned.ckpt", callback.evaluations[0].result.model.eval()


@pytest.fixture
def narrow(pruned):
    return mlprank.load_pruned(pruned[0], Project())


INPUTS = blobs(seed=5).tensors[0]


@pytest.mark.slow
def test_a_fresh_process_needs_only_the_file_and_the_class(pruned, tmp_path):
    path, model = pruned
    (tmp_path / "their_net.py").write_text(NETWORK)
    torch.save(INPUTS, tmp_path / "inputs.pt")
    script = (
        "import sys, torch, mlprank; from their_net import TheirNet; inputs = torch.load('inputs.pt');"
        f"narrow = mlprank.load_pruned({str(path)!r}, TheirNet()); torch.save(narrow(inputs).detach(), 'outputs.pt');"
        "assert not {'lightning', 'mlprank.callbacks', 'mlprank.datamodules'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), model(INPUTS).detach())


def test_the_wrong_class_is_named_with_layer_and_sizes(pruned):
    with pytest.raises(
        ValueError, match=r'layer "net.0": net.0.weight has shape \(16, 8\) .* \(24, 8\) in this Project'
    ):
        mlprank.load_pruned(pruned[0], Project(width=24))


def test_it_can_be_copied_and_its_state_dict_goes_round(narrow):
    copied = copy.deepcopy(narrow)
    assert [layer.weight.shape for layer in copied.net[::2]] == [(8, 8), (8, 8), (3, 8)]
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(narrow.state_dict())
    torch.testing.assert_close(copied(INPUTS), narrow(INPUTS), atol=0, rtol=0)


def test_it_can_be_exported(narrow):
    batch = torch.export.Dim("batch")
    exported = torch.export.export(narrow.net, (INPUTS[:4],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(INPUTS), narrow(INPUTS))


@pytest.mark.slow
def test_it_can_be_compiled(narrow):
    compiled = torch.compile(narrow.net, backend="aot_eager")
    torch.testing.assert_close(compiled(INPUTS), narrow(INPUTS))


def test_it_trains_on(narrow):
    inputs, labels = blobs().tensors
    before = [parameter.detach().clone() for parameter in narrow.parameters()]
    optimizer = torch.optim.SGD(narrow.train().parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        losses.append(F.cross_entropy(narrow(inputs), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(not torch.equal(one, other) for one, other in zip(before, narrow.parameters(), strict=True))


def test_it_can_be_fitted_and_pruned_again(narrow, tmp_path):
    callback = PruningCallback(0.5)
    trainer_for(tmp_path, callback, max_epochs=1).fit(narrow.train(), datamodule=Blobs())
    again = mlprank.load_pruned(tmp_path / "pruned.ckpt", copy.deepcopy(callback.evaluations[0].result.dense))
    assert [layer.out_features for layer in again.net if isinstance(layer, nn.Linear)] == [4, 4, 3]
