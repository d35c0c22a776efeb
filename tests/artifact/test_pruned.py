"""Pruned files: what they hold, how they are built again, and which are refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import DIGEST, digest_of, sha256
from mlprank.artifact.pruned import Artifact, load_pruned, read_artifact
from mlprank.models import MLP
from mlprank.pruning.pipeline import prune
from mlprank.pruning.result import PruningResult
from tests.networks import difference, outputs, randomise

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


class Foreign(nn.Module):
    """Somebody's network: it records nothing of how it was built."""

    def __init__(self, width: int = 10, *, bias: bool = False) -> None:
        super().__init__()
        self.fc, self.norm, self.head = (
            nn.Linear(6, width, bias=bias),
            nn.BatchNorm1d(width),
            nn.Linear(width, 3, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.sigmoid(self.norm(self.fc(x))))
        return out


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


@pytest.fixture(scope="module")
def ours() -> PruningResult:
    return prune(randomise(MLP(6, [10, 8], 3, batch_norm=True), seed=1).eval(), X, amount=0.3)


@pytest.fixture(scope="module")
def foreign() -> PruningResult:
    return prune(randomise(Foreign(), seed=1).eval(), X)


def same(one: nn.Module, other: nn.Module) -> bool:
    return difference(outputs(one, X), outputs(other, X)) == 0


def test_our_networks_are_built_again_from_the_file_alone(ours: PruningResult, tmp_path: Path) -> None:
    path = ours.save(tmp_path / "new" / "pruned.ckpt")
    loaded = load_pruned(path)
    assert isinstance(loaded, MLP)
    assert not loaded.training
    assert same(loaded, ours.model)
    assert str(loaded) == str(ours.model)
    assert [file.name for file in path.parent.iterdir()] == ["pruned.ckpt"]


def test_somebodys_networks_are_built_from_a_dense_instance_which_stays_dense(
    foreign: PruningResult, tmp_path: Path
) -> None:
    path = foreign.save(tmp_path / "pruned.ckpt")
    dense = Foreign()
    loaded = load_pruned(path, dense)
    assert same(loaded, foreign.model)
    assert dense.fc.out_features == 10
    assert loaded.get_submodule("head").bias is not None  # created by folding
    assert same(load_pruned(path, Foreign), foreign.model)
    with pytest.raises(
        ValueError,
        match=r"Foreign cannot be built from what the file says: it does not say how.*: load_pruned\(.*Foreign\(",
    ):
        load_pruned(path)


def test_wrappers_are_looked_through_both_ways(foreign: PruningResult, tmp_path: Path) -> None:
    bare = foreign.save(tmp_path / "bare.ckpt")
    assert same(load_pruned(bare, Wrapper(Foreign())), foreign.model)
    assert same(load_pruned(bare, nn.DataParallel(Foreign())), foreign.model)
    wrapped = prune(Wrapper(randomise(Foreign(), seed=1).eval()), X)
    path = wrapped.save(tmp_path / "wrapped.ckpt")
    assert same(load_pruned(path, Foreign()), wrapped.model)
    assert same(load_pruned(path, Wrapper(Foreign())), wrapped.model)


def test_the_file_says_how_the_network_was_pruned_and_where_it_came_from(ours: PruningResult, tmp_path: Path) -> None:
    path = ours.save(tmp_path / "pruned.ckpt", source="dense.ckpt", seed=3)
    artifact = read_artifact(path)
    assert artifact.class_path == "mlprank.models.mlp.MLP"
    assert artifact.model is not None
    assert artifact.model["init_args"]["widths"] == [10, 8]
    assert artifact.recipe == ours.recipe.plain()
    assert artifact.provenance == {"source": "dense.ckpt", "seed": 3}
    assert artifact.shapes["fc1.weight"] == [10, 6]
    assert torch.equal(artifact.kept["fc1"], ours.masks["fc1"].nonzero().flatten())
    assert artifact.whole == dict(ours.whole)
    assert (artifact.achieved, artifact.max_difference) == (ours.achieved, ours.max_difference)
    assert (artifact.example_shape, artifact.example_dtype) == ([1, 6], "float32")
    assert {"mlprank", "torch", "lightning", "python"} <= set(artifact.versions)
    assert len(sha256(path)) == 64
    # Tensors and plain types only, as Lightning's checkpoints are.
    content = torch.load(path, weights_only=True)
    assert {"state_dict", "mlprank", "pytorch-lightning_version"} <= set(content)


def test_a_network_that_is_narrow_already_is_its_own_dense_instance(foreign: PruningResult, tmp_path: Path) -> None:
    again = prune(foreign.model, X, amount=0.4)
    path = again.save(tmp_path / "twice.ckpt")
    assert again.widths["fc"] == (5, 3)
    assert same(load_pruned(path, foreign.model), again.model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_comes_along(dtype: torch.dtype, tmp_path: Path) -> None:
    network = randomise(MLP(6, [10], 3), seed=1).to(dtype).eval()
    result = prune(network, X.to(dtype))
    loaded = load_pruned(result.save(tmp_path / "pruned.ckpt"), MLP(6, [10], 3).to(dtype))
    assert difference(outputs(loaded, X.to(dtype)), outputs(result.model, X.to(dtype))) == 0


# -- files that are refused ---------------------------------------------------------------------------------------


def rewritten(path: Path, **changes: Any) -> Path:
    """Change entries of a file's own record."""
    content = torch.load(path, weights_only=True)
    content["mlprank"].update(changes)
    content[DIGEST] = digest_of(content)
    torch.save(content, path)
    return path


def test_another_class_or_other_sizes_are_named_with_layer_and_sizes(
    ours: PruningResult, foreign: PruningResult, tmp_path: Path
) -> None:
    path = foreign.save(tmp_path / "pruned.ckpt")
    with pytest.raises(ValueError, match=r'layer "fc" of the pruned network is not in MLP; give the class .*Foreign'):
        load_pruned(path, MLP(6, [10], 3))
    with pytest.raises(
        ValueError,
        match=r'layer "fc": fc\.weight has shape \(10, 6\) in the network that was pruned, \(12, 6\) in this',
    ):
        load_pruned(path, Foreign(12))
    with pytest.raises(ValueError, match=r"Foreign is not the pruned class: the file lacks \['fc\.bias'\]"):
        load_pruned(path, Foreign(bias=True))
    with pytest.raises(ValueError, match=r'layer "fc1": fc1\.weight has shape \(10, 6\)'):
        load_pruned(ours.save(tmp_path / "ours.ckpt"), MLP(6, [11, 8], 3, batch_norm=True))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nowhere\.ckpt does not exist"):
        load_pruned(tmp_path / "nowhere.ckpt")


def test_damaged_files_are_named(ours: PruningResult, tmp_path: Path) -> None:
    whole = ours.save(tmp_path / "whole.ckpt").read_bytes()
    for name, content in {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "start": whole[:100],
        "text": b"hello there",
        "end": whole[100:],
        "flipped": whole[:200] + bytes(byte ^ 255 for byte in whole[200:1200]) + whole[1200:],
    }.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.ckpt is (damaged|refused|no )"):
            load_pruned(path)


def test_foreign_and_newer_files_are_told_apart(ours: PruningResult, tmp_path: Path) -> None:
    path = tmp_path / "dense.ckpt"
    torch.save({"state_dict": MLP(6, [4], 3).state_dict()}, path)
    with pytest.raises(
        ValueError, match=r"dense\.ckpt is no pruned network: it has no mlprank entry; make one by mlprank prune"
    ):
        load_pruned(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="holds a list, not a checkpoint"):
        load_pruned(path)
    with pytest.raises(ValueError, match=r"has format 99, this version of mlprank reads 2; install a matching mlprank"):
        load_pruned(rewritten(ours.save(path), format=99))
    with pytest.raises(ValueError, match=r"is damaged: its mlprank entry lacks \[\] or has \['more'\] besides"):
        load_pruned(rewritten(ours.save(path), more=1))


def test_files_that_contradict_themselves_are_refused(
    ours: PruningResult, foreign: PruningResult, tmp_path: Path
) -> None:
    path = tmp_path / "pruned.ckpt"
    slices = {name: dict(dims) for name, dims in ours.slices.items()}
    with pytest.raises(
        ValueError, match=r'is damaged: layer "fc1": fc1\.weight has shape .*, and should have \(10, 6\)'
    ):
        load_pruned(rewritten(ours.save(path), slices={}))
    slices["fc1.weight"] = {0: torch.tensor([0, 99])}
    with pytest.raises(ValueError, match=r'layer "fc1": fc1\.weight has shape .* keeps index 99 of dimension 0'):
        load_pruned(rewritten(ours.save(path), slices=slices))
    stranger = {"class_path": "os.system", "init_args": {"command": "true"}}
    with pytest.raises(ValueError, match=r"class_path='os\.system' is not a subclass of torch\.nn"):
        load_pruned(rewritten(ours.save(path), model=stranger))
    with pytest.raises(ValueError, match="cannot be built from"):
        load_pruned(rewritten(ours.save(path), model={"class_path": "mlprank.models.MLP", "init_args": {"depth": 3}}))
    with pytest.raises(ValueError, match=r"MLP cannot be built from \{\}.*give a dense instance"):
        load_pruned(foreign.save(path), MLP)


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "mlprank": {"format": 1, "class_path": Exploit(marker)}}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt is damaged, or holds objects that would run code"):
        load_pruned(path)
    path.write_bytes(pickle.dumps(Exploit(marker), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.ckpt is damaged, or holds objects that would run code"):
        load_pruned(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Exploit(marker), protocol=2))
        file.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match=r"evil\.ckpt is (refused|damaged)"):
        load_pruned(path)
    assert not marker.exists()


def test_a_file_that_cannot_be_written_leaves_what_was_there(ours: PruningResult, tmp_path: Path) -> None:
    path = ours.save(tmp_path / "pruned.ckpt")
    before = path.read_bytes()
    unwritable = ours.save  # an entry that cannot be pickled stops the writing in the middle
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        unwritable(path, stranger=lambda: None)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pruned.ckpt"]
    with pytest.raises(IsADirectoryError, match="is a directory; name a file in it"):
        ours.save(tmp_path)


def test_the_record_names_every_field() -> None:
    assert {"slices", "biases", "shapes", "kept", "recipe", "provenance"} <= set(Artifact.__dataclass_fields__)
