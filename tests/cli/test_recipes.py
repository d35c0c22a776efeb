"""Every recipe of the thesis, from its command to the pruned network, on files in the data set's own format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlprank as library
from mlprank.models.classifier import ImageClassifier
from tests.datamodules.writers import write_cifar10, write_cifar100, write_mnist

RECIPES = Path(__file__).parents[2] / "configs" / "thesis"
WRITERS: dict[str, Callable[[Path], Any]] = {
    "two_layer_mnist": write_mnist,
    "three_layer_fashion_mnist": write_mnist,
    "six_layer_cifar10": write_cifar10,
    "twelve_layer_cifar100": write_cifar100,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_recipe_trains_prunes_and_tests(mlprank: Callable[..., Any], tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "files")
    # The files hold fewer images than a batch of the recipe.
    data = (f"--data.data_dir={tmp_path}/files", "--data.download=false", "--data.batch_size=16")
    fit = mlprank("fit", f"--config={RECIPES}/{name}.yaml", "--trainer.max_epochs=1", *data)
    assert fit.code == 0, fit.err
    run = tmp_path / "runs" / name / "001"
    pruned = library.load_pruned(run / "pruned.ckpt")
    dense = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt").model
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (pruned, dense)]
    assert sizes[0] < sizes[1]
    test = mlprank("test", f"--config={RECIPES}/{name}.yaml", "--ckpt_path=best", *data)
    assert test.code == 0, test.err
    assert "test_top1" in test.out
