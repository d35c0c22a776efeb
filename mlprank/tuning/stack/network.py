"""K networks of one shape as one module: `torch.vmap` of the first's forward pass over everyone's weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from mlprank.utils.errors import first_line

_EXAMPLES = 3
_SEPARATOR = "/"


class CannotStackError(ValueError):
    """These trials cannot be trained as one stacked model; the text says what stands in the way."""


class Stack(nn.Module):
    """K networks of one shape that are computed together, each on its own samples or all on the same.

    Parameters and buffers have a leading dimension K. Trials never meet: no value of one enters the result of another.

    Args:
        networks: One a trial.
        in_shape: Shape of one sample.
        seeds: Of every trial's dropout; 0, 1, … by default.

    Raises:
        CannotStackError: If the networks differ in shape, or `torch.vmap` cannot carry out their forward pass.
    """

    def __init__(
        self, networks: Sequence[nn.Module], *, in_shape: tuple[int, ...], seeds: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks is empty; a stack needs at least one network")
        self.in_shape, self.num_trials = tuple(in_shape), len(networks)
        self.names: tuple[str, ...] = tuple(networks[0].state_dict())
        self.weights = nn.ParameterDict()
        for name, first in _tensors(networks[0]).items():
            tensors = [_tensors(network).get(name) for network in networks]
            if any(tensor is None or tensor.shape != first.shape or tensor.dtype != first.dtype for tensor in tensors):
                raise CannotStackError(f"{name!r} has not the same shape in every network; a stack needs one shape")
            stacked = torch.stack([tensor.detach() for tensor in tensors if tensor is not None])
            if isinstance(first, nn.Parameter):
                self.weights[_key(name)] = nn.Parameter(stacked, requires_grad=first.requires_grad)
            else:
                self.register_buffer(_key(name), stacked)
        self._template = (copy.deepcopy(networks[0]),)  # in a tuple, so that its tensors are not the stack's
        _check(self._template[0].train(), self.in_shape)
        self._bound: list[tuple[Tensor, list[nn.Parameter]]] = []
        self.generators = [torch.Generator().manual_seed(seed) for seed in (seeds or range(self.num_trials))]

    def tensor(self, name: str) -> Tensor:
        """Return the stacked tensor of a parameter's or buffer's name, shape (K, ...)."""
        key = _key(name)
        return self.weights[key] if key in self.weights else self.get_buffer(key)

    def forward(self, batch: Tensor) -> Float[Tensor, "K classes B"]:
        """Compute the scores of every network."""
        if batch.dim() == 1 + len(self.in_shape):
            batch = batch.expand(self.num_trials, *batch.shape)
        if batch.shape[0] != self.num_trials:
            raise ValueError(f"batch of shape {tuple(batch.shape)} holds no batch for each of {self.num_trials} trials")
        template = self._template[0].train(self.training)
        return _scores(template, {name: self.tensor(name) for name in _tensors(template)}, batch, self.generators).mT

    def unstack(self, trial: int) -> dict[str, Tensor]:
        """Return the state dict of one trial, with the template's own names."""
        return {name: self.tensor(name)[trial].detach().clone() for name in self.names}

    def bind(self, networks: Sequence[nn.Module]) -> None:
        """Make ordinary networks share their parameters and buffers with the stack: what changes one changes the other.

        To be called again after the stack moved to another device or lost a trial.
        """
        for trial, network in enumerate(networks):
            for name, tensor in network.state_dict(keep_vars=True).items():
                tensor.data = self.tensor(name).data[trial]
        names = [name for name, _ in networks[0].named_parameters()]
        self._bound = [(self.tensor(name), [network.get_parameter(name) for network in networks]) for name in names]

    def share_gradients(self) -> None:
        """Give every bound network its slice of the stacked gradients, or None where there are none."""
        for stacked, slices in self._bound:
            parts = [None] * len(slices) if stacked.grad is None else stacked.grad.unbind(0)
            for parameter, part in zip(slices, parts, strict=True):
                parameter.grad = part

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state of the generators, for the checkpoint."""
        return {"generators": torch.stack([generator.get_state() for generator in self.generators])}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of the generators."""
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value.cpu().clone())  # a view with an offset is refused


def _check(template: nn.Module, in_shape: tuple[int, ...]) -> None:
    """Try the forward pass, and refuse what is slower or wrong in a stack."""
    kind, names = type(template).__name__, dict[int, str]()
    for name, tensor in template.state_dict(keep_vars=True).items():
        if names.setdefault(id(tensor), name) != name:
            raise CannotStackError(f"{names[id(tensor)]!r} and {name!r} are one tensor; a stack needs two")
    for name, module in template.named_modules():
        if isinstance(module, _ConvNd):  # measured: a fifth slower than one network after another
            raise CannotStackError(f"{name!r} is a convolution, which is slower in a stack than by itself")
    state = {name: tensor.detach().unsqueeze(0).clone() for name, tensor in _tensors(template).items()}
    samples = next(template.parameters()).new_zeros(1, _EXAMPLES, *in_shape)
    try:
        scores = _scores(template, state, samples, [torch.Generator()])
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise CannotStackError(f"{kind} cannot be computed by torch.vmap: {first_line(error)}") from error
    shape = tuple(scores.shape[1:]) if isinstance(scores, Tensor) else type(scores).__name__
    if len(shape) != 2 or shape[0] != _EXAMPLES:
        raise CannotStackError(f"{kind} returns {shape} for {_EXAMPLES} samples; a stack needs one score a class")


def _scores(
    template: nn.Module, state: Mapping[str, Tensor], batch: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    dtype = next(iter(state.values())).dtype
    with _Together(generators, dtype):
        scores: Tensor = torch.vmap(lambda tensors, x: functional_call(template, tensors, (x,)))(state, batch)
    return scores


class _Together(TorchFunctionMode):
    """Carries out what `vmap` does slowly, for one type of numbers only, or with one generator for all trials."""

    def __init__(self, generators: Sequence[torch.Generator], dtype: torch.dtype) -> None:
        super().__init__()
        self.generators, self.dtype = generators, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dim() == 2:
            return _linear(*args, **kwargs)
        if func is F.batch_norm:  # in mixed precision its input has another type than its statistics
            return func(args[0].to(self.dtype), *args[1:], **kwargs).to(args[0].dtype)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        kept: Tensor = _Kept.apply(x, p, self.generators)
        return x * kept / (1 - p) if p < 1 else x * 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute feature by feature, so that the gradient of the weight comes out in the weight's own layout."""
    out = weight @ x.mT
    return (out if bias is None else out + bias.unsqueeze(-1).to(out.dtype)).mT


class _Kept(torch.autograd.Function):
    """Which values dropout keeps, 1 or 0; under `vmap` drawn from one generator a trial."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: Sequence[torch.Generator]) -> Tensor:
        raise AssertionError("only called under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, p: float, generators: Sequence[torch.Generator]) -> tuple[Tensor, int]:
        kept = torch.empty(x.movedim(in_dims[0], 0).shape, dtype=x.dtype)
        for mask, generator in zip(kept, generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        return kept.to(x.device), 0


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _key(name: str) -> str:
    return name.replace(".", _SEPARATOR)
