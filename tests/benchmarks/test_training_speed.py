"""`mlprank fit` trains nearly as fast as a raw loop, and several times as fast as Lightning does by default."""

import pytest

from mlprank.datamodules import FashionMNISTDataModule
from tests.benchmarks.training_speed import compare

FILES = FashionMNISTDataModule.file_set.system_folders[0]


@pytest.mark.slow
@pytest.mark.skipif(not FILES.is_dir(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize(
    ("network", "times_plain", "share_of_raw"), [("TwoLayerMLP", 5.0, 0.8), ("ThreeLayerMLP", 1.5, 0.8)]
)
def test_fit_is_fast_with_bar_logs_and_metrics(
    network: str, times_plain: float, share_of_raw: float, record_property: pytest.FixtureRequest
) -> None:
    found = compare(network)
    for name, value in found.samples_per_s.items():
        record_property(f"{name}_samples_per_s", round(value))  # type: ignore[operator]
    assert found.times_plain >= times_plain, found
    assert found.share_of_raw >= share_of_raw, found
