"""K networks of one shape as one module: one matrix product a layer for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mlprank.tuning.tracing import CannotStackError, Operation, Plan, Value, trace

_SEPARATOR = "/"


class Stack(nn.Module):
    """K networks of one shape that are computed together, each on its own samples or all on the same.

    Parameters have a leading dimension K. Activations are feature-major, (K, features, B), so that the gradient of a
    weight comes out in the weight's own layout. Trials never meet: no value of one enters the result of another.

    Args:
        networks: The K networks, of one class and shape; their values are copied.
        in_shape: Shape of one input sample.
        seeds: One an own network, for dropout; 0, 1, … by default.

    Raises:
        CannotStackError: If the networks differ in shape or hold an operation that cannot be stacked.
    """

    def __init__(
        self, networks: Sequence[nn.Module], *, in_shape: tuple[int, ...], seeds: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks is empty; a stack needs at least one network")
        self.plan: Plan = trace(networks[0], tuple(in_shape))
        states = [network.state_dict() for network in networks]
        parameters = dict(networks[0].named_parameters())
        self.names: tuple[str, ...] = tuple(states[0])
        self.weights = nn.ParameterDict()
        for name, first in states[0].items():
            tensors = [state.get(name) for state in states]
            if any(tensor is None or tensor.shape != first.shape or tensor.dtype != first.dtype for tensor in tensors):
                raise CannotStackError(f"{name!r} has not the same shape in every network; a stack needs one shape")
            stacked = torch.stack([tensor.detach() for tensor in tensors if tensor is not None])
            if name in parameters:
                self.weights[_key(name)] = nn.Parameter(stacked, requires_grad=parameters[name].requires_grad)
            else:
                self.register_buffer(_key(name), stacked)
        self.num_trials = len(networks)
        self._bound: list[tuple[Tensor, list[nn.Parameter]]] = []
        self.generators = [torch.Generator().manual_seed(seed) for seed in (seeds or range(self.num_trials))]

    def tensor(self, name: str) -> Tensor:
        """Return the stacked tensor of a state dict's name, shape (K, ...).

        Args:
            name: Its name in the template's state dict.
        """
        key = _key(name)
        return self.weights[key] if key in self.weights else self.get_buffer(key)

    def forward(self, batch: Tensor) -> Float[Tensor, "K classes B"]:
        """Compute the scores of every network.

        Args:
            batch: Shape (B, *in_shape), the same for all, or (K, B, *in_shape), each its own.

        Returns:
            Scores, shape (K, classes, B).
        """
        shared = batch.dim() == 1 + len(self.plan.in_shape)
        if not shared and batch.shape[0] != self.num_trials:
            raise ValueError(f"batch of shape {tuple(batch.shape)} holds no batch for each of {self.num_trials} trials")
        values = {self.plan.source: (batch.unsqueeze(0) if shared else batch).movedim(1, -1)}
        for operation in self.plan.operations:
            values[operation.name] = getattr(self, f"_{operation.kind}")(operation, values)
        return values[self.plan.result].expand(self.num_trials, -1, -1)

    def unstack(self, trial: int) -> dict[str, Tensor]:
        """Return the state dict of one trial, with the template's own names.

        Args:
            trial: Its place in the stack, from 0.
        """
        return {name: self.tensor(name)[trial].detach().clone() for name in self.names}

    def bind(self, networks: Sequence[nn.Module]) -> None:
        """Make ordinary networks share their parameters and buffers with the stack: what changes one changes the other.

        To be called again after the stack moved to another device or lost a trial.

        Args:
            networks: One a trial, of the template's class and shape, in the order of the stack.
        """
        for trial, network in enumerate(networks):
            for name, tensor in network.state_dict(keep_vars=True).items():
                tensor.data = self.tensor(name).data[trial]
        names = [name for name, _ in networks[0].named_parameters()]
        self._bound = [(self.tensor(name), [network.get_parameter(name) for network in networks]) for name in names]

    def share_gradients(self) -> None:
        """Give every bound network its slice of the stacked gradients, or None where there are none."""
        for stacked, slices in self._bound:
            gradient = stacked.grad
            if gradient is None:
                for parameter in slices:
                    parameter.grad = None
            else:
                for parameter, part in zip(slices, gradient.unbind(0), strict=True):
                    parameter.grad = part

    def keep(self, trials: Sequence[int]) -> None:
        """Drop all trials but these, in place; what stays is unchanged to the bit.

        The stacked parameters stay the same objects. Gradients are dropped.

        Args:
            trials: Places in the stack, from 0, in rising order.
        """
        for name in self.names:
            tensor = self.tensor(name)
            tensor.grad = None
            tensor.data = tensor.data[list(trials)].clone()
        self.generators = [self.generators[trial] for trial in trials]
        self.num_trials = len(trials)

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state of the generators, for the checkpoint."""
        return {"generators": torch.stack([generator.get_state() for generator in self.generators])}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of the generators.

        Args:
            state: What `get_extra_state` returned.
        """
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value.cpu().clone())  # a view with an offset is refused

    def _get(self, argument: Any, values: Mapping[str, Tensor]) -> Any:
        if isinstance(argument, Value):
            return self.tensor(argument.name) if argument.stored else values[argument.name]
        return argument

    def _linear(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor
        weight: Tensor
        x, weight, *rest = (self._get(argument, values) for argument in operation.args)
        bias = rest[0].unsqueeze(-1) if rest and rest[0] is not None else None
        x = x.expand(len(weight), -1, -1)
        return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias, weight, x)

    def _batch_norm(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        names = operation.args[1:5]
        weight, bias, mean, variance = (None if name is None else self._get(name, values).flatten() for name in names)
        x: Tensor = self._get(operation.args[0], values)
        x = x.expand(self.num_trials, *x.shape[1:])
        momentum, eps = operation.args[6:8]
        if self.training and isinstance(names[2], Value):
            counter = names[2].name.rpartition(".")[0] + ".num_batches_tracked"
            if counter in self.names:
                self.tensor(counter).add_(1)
        out = F.batch_norm(
            x.reshape(1, x.shape[0] * x.shape[1], -1),
            mean,
            variance,
            weight,
            bias,
            training=self.training or bool(operation.args[5]),
            momentum=momentum,
            eps=eps,
        )
        return out.view(x.shape)

    def _dropout(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor
        x, p, always = (self._get(argument, values) for argument in operation.args)
        if not (self.training or always) or p == 0:
            return x
        kept = torch.empty(self.num_trials, *x.shape[1:], dtype=x.dtype)
        for mask, generator in zip(kept, self.generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        return x * kept.to(x.device).div_(1 - p) if p < 1 else x * 0

    def _reshape(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor = self._get(operation.args[0], values)
        return x.reshape(x.shape[0], *operation.shape, x.shape[-1])

    def _pointwise(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        dims = len(operation.shape)

        def align(argument: Any) -> Any:
            tensor = self._get(argument, values)
            if not isinstance(argument, Value):
                return argument
            if argument.stored:
                shape = tensor.shape[1:][-dims:] if tensor.dim() > 1 else ()
                return tensor.reshape(-1, *(1,) * (dims - len(shape)), *shape, 1)
            return tensor.reshape(tensor.shape[0], *(1,) * (dims + 2 - tensor.dim()), *tensor.shape[1:])

        arguments = [align(argument) for argument in operation.args]
        result: Tensor = operation.target(*arguments, **{key: align(value) for key, value in operation.kwargs.items()})
        return result


def _key(name: str) -> str:
    return name.replace(".", _SEPARATOR)
