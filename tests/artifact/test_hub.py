"""Folders as the Hub lays them out: the file, a model card with the metrics, and addresses."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch import nn

import mlprank
from mlprank.artifact.pruned import from_pretrained
from mlprank.models import MLP
from tests.networks import difference, outputs, randomise

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def result() -> mlprank.PruningResult:
    return mlprank.prune(randomise(MLP(6, [12, 8], 3), seed=1).eval(), X, amount=0.5)


def test_a_folder_gives_the_network_and_a_card_with_its_metrics(result, tmp_path: Path) -> None:
    folder = result.save_pretrained(tmp_path / "net")
    assert {path.name for path in folder.iterdir()} == {"pruned.ckpt", "README.md"}
    assert difference(outputs(from_pretrained(folder), X), outputs(result.model, X)) == 0
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlprank\n")
    before, after = result.metrics.before.num_parameters, result.metrics.after.num_parameters
    assert f"| Parameters | {before:,} | {after:,} |" in card
    assert "`amount`: `0.5`" in card


def test_an_address_of_the_hub_is_fetched_and_an_upload_sends_the_folder(
    result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "hub"

    class HfApi:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            (store / name).mkdir(parents=True)

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            for path in Path(folder_path).iterdir():
                (store / repo_id / path.name).write_bytes(path.read_bytes())
            return f"https://hub/{repo_id}"

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.__spec__ = ModuleSpec("huggingface_hub", None)
    hub.HfApi, hub.errors = HfApi, errors  # type: ignore[attr-defined]
    hub.hf_hub_download = lambda name, file: str(store / name / file)  # type: ignore[attr-defined]
    errors.HfHubHTTPError = errors.HFValidationError = OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    assert result.push_to_hub("me/net") == "https://hub/me/net"
    assert difference(outputs(mlprank.load_pruned("hf://me/net"), X), outputs(result.model, X)) == 0
    assert difference(outputs(from_pretrained("hf://me/net"), X), outputs(result.model, X)) == 0


def test_without_the_extra_an_address_names_it_and_a_bad_one_is_refused(
    result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "mlprank\[hub\]"'):
        mlprank.load_pruned("hf://me/net")
    with pytest.raises(ImportError, match=r'pip install "mlprank\[hub\]"'):
        result.push_to_hub("me/net")
    with pytest.raises(ValueError, match=r"hf://me must name a user and a network"):
        mlprank.load_pruned("hf://me")


def test_a_network_that_was_never_pruned_is_refused(tmp_path: Path) -> None:
    from mlprank.artifact.pruned import save_pretrained

    with pytest.raises(ValueError, match="was never pruned"):
        save_pretrained(nn.Linear(3, 2), tmp_path / "net")
