"""Image classifiers as plain modules, and the LightningModule that trains them (`mlprank.models.classifier`)."""

from mlprank.artifact.spec import build_model, describe_model
from mlprank.models.cnn import FourLayerCNN, ResNet18
from mlprank.models.mlp import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP
from mlprank.models.registry import MODELS, get_model, load_published, load_weights, register_model

__all__ = [
    "MLP",
    "MODELS",
    "FourLayerCNN",
    "ResNet18",
    "SixLayerMLP",
    "ThreeLayerMLP",
    "TwelveLayerMLP",
    "TwoLayerMLP",
    "build_model",
    "describe_model",
    "get_model",
    "load_published",
    "load_weights",
    "register_model",
]
