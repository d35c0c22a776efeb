"""Make a module fit a checkpoint of its pruned self: widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import nn

from mlprank.artifact.spec import build_model


class Classifier(Protocol):
    """A LightningModule whose network is `model` and whose hyper-parameters describe that network."""

    model: nn.Module
    pruning: dict[str, Any] | None

    @property
    def hparams(self) -> Any:
        """What built the classifier, with the network's description under "model"."""


def match_widths(module: Classifier, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give `module.model` the widths of the checkpoint: narrow for a pruned one, else dense.

    Args:
        module: The classifier, dense or narrow.
        checkpoint: A Lightning checkpoint; that of a pruned network has an entry "mlprank" whose "slices" are the kept
            indices of every parameter that was narrowed, by its name in the classifier and its dimension, and whose
            "biases" name the biases that pruning created.

    Returns:
        The entry "mlprank", or None for a dense network.

    Raises:
        ValueError: If the entry is malformed, or a narrow network of an unknown class is to become dense.
    """
    record = checkpoint.get("mlprank")
    if record is None:
        if module.pruning is not None:
            module.model = _dense(module)
        return None
    if not isinstance(record, dict) or not isinstance(record.get("slices"), Mapping):
        raise ValueError("the checkpoint's entry 'mlprank' has no 'slices', so the file is damaged or foreign")
    state = checkpoint["state_dict"]
    own = cast(nn.Module, module).state_dict()
    created = [str(name) for name in record.get("biases", ())]
    if any(name in state and state[name].shape != tensor.shape for name, tensor in own.items()) or set(created) - set(
        own
    ):
        if module.pruning is not None:
            module.model = _dense(module)
        from mlprank.surgery.narrow import narrow

        slices = {str(name).removeprefix("model."): kept for name, kept in record["slices"].items()}
        module.model = narrow(module.model, slices, biases=tuple(name.removeprefix("model.") for name in created))
    return record


def _dense(module: Classifier) -> nn.Module:
    spec = module.hparams.get("model")
    if spec is None:
        raise ValueError("the network is narrow and its class is not recorded; build the classifier anew")
    return build_model(spec)
