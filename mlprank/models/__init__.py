"""Image classifiers as plain modules, and the LightningModule that trains them (`mlprank.models.classifier`)."""

from mlprank.artifact.spec import build_model, describe_model
from mlprank.models.mlp import MLP
from mlprank.models.published import load_published
from mlprank.models.registry import MODELS, get_model
from mlprank.models.thesis import SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP

__all__ = [
    "MLP",
    "MODELS",
    "SixLayerMLP",
    "ThreeLayerMLP",
    "TwelveLayerMLP",
    "TwoLayerMLP",
    "build_model",
    "describe_model",
    "get_model",
    "load_published",
]
