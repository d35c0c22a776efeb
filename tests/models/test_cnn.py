import pytest
import torch
from torch import nn

from mlprank.models import FourLayerCNN, ResNet18, build_model, describe_model


@pytest.mark.parametrize("network", [FourLayerCNN(3, 7, widths=(2, 3, 4, 5)), ResNet18(3, 7, width=2)])
def test_images_of_any_size_become_logits_and_the_network_is_rebuilt_from_its_description(network: nn.Module) -> None:
    for side in (28, 32):
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)
    again = build_model(describe_model(network) or {})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_resnet_has_eighteen_weighted_layers_and_the_papers_widths() -> None:
    with torch.device("meta"):
        network = ResNet18(3, 10, width=64)
    inside = [
        m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(inside) == 18
    assert [m.out_channels for m in inside if isinstance(m, nn.Conv2d)][1::4] == [64, 128, 256, 512]


def test_wrong_widths_are_named() -> None:
    with pytest.raises(ValueError, match=r"widths=\[4, 4\] must be 4 numbers of channels"):
        FourLayerCNN(widths=(4, 4))
    with pytest.raises(ValueError, match=r"widths\[2\]=0 must be a whole number of at least 1"):
        FourLayerCNN(widths=(4, 4, 0, 4))
    with pytest.raises(ValueError, match=r"width=1.5 must be a whole number"):
        ResNet18(width=1.5)  # type: ignore[arg-type]
