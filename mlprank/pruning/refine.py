"""Refinement without labels: a short distillation of the narrow network towards the dense network's outputs.

The calibration data goes through the dense network once; then the narrow network is trained on what came out. It needs
no label, and what dropout and batch statistics would do in training is left aside: both networks run in evaluation
mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mlprank.calibration.data import Calibration
from mlprank.graph.program import Inputs, joined
from mlprank.graph.records import State
from mlprank.surgery.narrow import Slices, network_state, with_state
from mlprank.utils.errors import check_choice, check_whole
from mlprank.utils.modules import evaluating

OnStep = Callable[[int, int], None]
"""Told after every step how many of how many are done."""


@dataclass(frozen=True)
class Refinement:
    """How a narrow network learns from the dense one; `refine=1000` stands for `Refinement(steps=1000)`.

    Attributes:
        steps: Number of steps of Adam.
        learning_rate: Of the first step; it falls to 0 along a cosine.
        batch_size: Calibration samples in a step, over all processes.
        loss: "mse", the mean squared error of the outputs, for any network; "kl", the divergence of class
            probabilities, where the outputs are logits: probable classes then count more, which keeps more of the
            accuracy at high amounts.
        seed: Seed of the order in which samples are drawn.

    Raises:
        ValueError: If one is out of range.

    Examples:
        >>> Refinement(steps=500).learning_rate
        0.002
    """

    steps: int = 1000
    learning_rate: float = 2e-3
    batch_size: int = 128
    loss: Literal["mse", "kl"] = "mse"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("refine: ", steps=self.steps, batch_size=self.batch_size)
        check_whole("refine: ", least=0, seed=self.seed)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"refine: learning_rate={self.learning_rate!r} must be a positive number, such as 0.002")
        check_choice("refine: loss", self.loss, ("mse", "kl"))


def get_refinement(refine: int | Mapping[str, Any] | Refinement) -> Refinement | None:
    """Return the refinement that a number of steps, a description as YAML has it or an instance means; None for 0.

    Raises:
        TypeError: If it is none of these.
        ValueError: If a value is out of range or a parameter unknown.

    Examples:
        >>> get_refinement(200).steps
        200
        >>> get_refinement(0) is None
        True
    """
    if isinstance(refine, Refinement):
        return refine
    if isinstance(refine, Mapping):
        known = list(Refinement.__dataclass_fields__)
        if unknown := sorted(set(refine) - set(known)):
            raise ValueError(f'refine: there is no parameter "{unknown[0]}"; the parameters are {", ".join(known)}')
        return Refinement(**refine)
    if isinstance(refine, bool) or not isinstance(refine, int):
        raise TypeError(f"refine={refine!r} is not a number of steps; give one, such as 1000, or 0 for none")
    check_whole(least=0, refine=refine)
    return Refinement(steps=refine) if refine else None


def refine(
    narrow: nn.Module, dense: nn.Module, calibration: Calibration, *, by: Refinement, on_step: OnStep | None = None
) -> tuple[nn.Module, tuple[float, float]]:
    """Train a narrow network towards the dense network's outputs on the calibration data.

    Every step draws the same samples on every run. With several processes each draws from its own calibration data,
    gradients are averaged, and all end with the same weights. All calibration data is held in memory, on the network's
    device. Both networks are left untouched; `on_step` is told after every step.

    Returns:
        The refined network in the mode of the given one, and its loss on the calibration data before and after, as a
        share of what a constant output would lose ("mse"), or in nats ("kl"). It is never larger after: weights that
        are no better are not taken.

    Raises:
        ValueError: If the loss stops being a number, or no gradient comes from the outputs.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(narrow, dense):
        learner = with_state(narrow, network_state(narrow))
        parameters = [each for each in learner.parameters() if each.is_floating_point()]
        frozen = [each for each in parameters if not each.requires_grad]
        for each in parameters:
            each.requires_grad_(True)
        pool = _Pool(dense, calibration, batch_size=by.batch_size)
        loss = _Loss(pool, calibration, kind=by.loss)
        before = loss.of_pool(learner)
        start = [each.detach().clone() for each in parameters]
        _train(learner, parameters, pool, loss, calibration, by=by, on_step=on_step)
        after = loss.of_pool(learner)
        if not math.isfinite(after):
            raise ValueError(
                f"refine: the loss became {after} with learning_rate={by.learning_rate}; give a smaller one, such as "
                f"refine={{'steps': {by.steps}, 'learning_rate': {by.learning_rate / 10:g}}}"
            )
        if after > before:  # a few steps at a large rate can end higher than they began
            with torch.no_grad():
                for each, old in zip(parameters, start, strict=True):
                    each.copy_(old)
            after = before
        for each in parameters:
            each.grad = None
        for each in frozen:
            each.requires_grad_(False)
    for module, given in zip(learner.modules(), narrow.modules(), strict=True):
        module.training = given.training
    return learner, (before, after)


def lifted(masked: State, before: State, after: State, slices: Slices) -> dict[str, Tensor]:
    """Give a masked network the changes that its narrow one has gone through, so that both are one function again.

    `slices` are the kept indices by dimension of every tensor that is narrower. Biases that only the narrow network has
    are in the result.
    """
    state = dict(masked)
    for name, new in after.items():
        if not new.is_floating_point():
            continue
        owner = f"{name.removesuffix('.bias')}.weight"
        # A bias that only the narrow network has holds what pruned neurons send; the masked network has them.
        full = state[name].clone() if name in state else new.new_zeros(len(masked[owner]))
        kept = slices[name] if name in slices else {dim: at for dim, at in slices.get(owner, {}).items() if dim == 0}
        places = [kept.get(dim, torch.arange(size)).to(full.device) for dim, size in enumerate(full.shape)]
        full[torch.meshgrid(*places, indexing="ij")] += (new - before[name]).to(full.dtype)
        state[name] = full
    return state


def _train(
    learner: nn.Module,
    parameters: list[nn.Parameter],
    pool: _Pool,
    loss: _Loss,
    calibration: Calibration,
    *,
    by: Refinement,
    on_step: OnStep | None,
) -> None:
    ranks = float(calibration.reduce(torch.ones(())))
    fused = all(each.device.type in ("cpu", "cuda") for each in parameters)
    optimizer = torch.optim.Adam(parameters, lr=by.learning_rate, fused=fused)
    batches = pool.batches(by.steps, seed=by.seed, ranks=round(ranks))
    for step, (inputs, targets) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = by.learning_rate * 0.5 * (1 + math.cos(math.pi * step / by.steps))
        value = loss(_outputs(learner, inputs), targets)
        if not value.requires_grad:
            raise ValueError(
                f"refine: the outputs of {type(learner).__name__} do not depend on its weights in a way that gives a "
                "gradient (its forward runs without autograd); leave out refine"
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if ranks > 1:
            _average(parameters, calibration, ranks)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, by.steps)


def _average(parameters: list[nn.Parameter], calibration: Calibration, ranks: float) -> None:
    """Give every process the mean gradient; parameters without one stay without one on all of them."""
    gradients = [each.grad for each in parameters if each.grad is not None]
    flat = calibration.reduce(torch.cat([each.flatten() for each in gradients])) / ranks
    for each, mean in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
        each.copy_(mean.view_as(each))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every floating-point tensor that a network returns."""
    return [
        leaf for leaf in pytree.tree_leaves(inputs.feed(model)) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


class _Pool:
    """Calibration inputs and what the dense network makes of them, in memory.

    Batches of one shape are joined, so that a step can draw its samples from all of them; others are drawn as they are.
    """

    def __init__(self, dense: nn.Module, calibration: Calibration, *, batch_size: int) -> None:
        self.batch_size = batch_size
        with torch.no_grad():
            parts = [(batch, _outputs(dense, batch.cloned())) for batch in calibration]
        if not parts[0][1]:
            raise ValueError(f"refine: {type(dense).__name__} returns no floating-point tensor to learn from")
        self.parts = [_joined(parts)] if _same_shapes(parts) else parts

    def batches(self, steps: int, *, seed: int, ranks: int) -> Any:
        """Yield so many pairs of inputs and targets; a sample comes again when all others of its part have come."""
        generator = torch.Generator().manual_seed(seed)
        size = max(1, self.batch_size // ranks)
        queues: dict[int, Tensor] = {}
        for _ in range(steps):
            number = 0 if len(self.parts) == 1 else int(torch.randint(len(self.parts), (), generator=generator))
            inputs, targets = self.parts[number]
            queue = queues.get(number, torch.empty(0, dtype=torch.long))
            while len(queue) < min(size, len(inputs)):
                queue = torch.cat([queue, torch.randperm(len(inputs), generator=generator)])
            chosen, queues[number] = queue[:size].to(inputs.tensors[0].device), queue[size:]
            yield inputs.taken(chosen), [each[chosen] for each in targets]


def _same_shapes(parts: list[tuple[Inputs, list[Tensor]]]) -> bool:
    """Whether inputs and targets run along the samples and have one shape otherwise."""
    first = [*parts[0][0].tensors, *parts[0][1]]
    return all(
        len(inputs) == len(each) and each.shape[1:] == one.shape[1:]
        for inputs, targets in parts
        for each, one in zip([*inputs.tensors, *targets], first, strict=True)
        if each.dim()
    )


def _joined(parts: list[tuple[Inputs, list[Tensor]]]) -> tuple[Inputs, list[Tensor]]:
    inputs = joined([inputs for inputs, _ in parts])
    return inputs, [torch.cat(each) for each in zip(*[targets for _, targets in parts], strict=True)]


class _Loss:
    """The distance of two lists of outputs."""

    def __init__(self, pool: _Pool, calibration: Calibration, *, kind: str) -> None:
        self.pool, self.calibration, self.kind = pool, calibration, kind
        self.class_dim = -1
        if kind == "kl":
            targets = pool.parts[0][1]
            if len(targets) != 1 or targets[0].dim() < 2:
                raise ValueError(
                    'refine: loss="kl" needs one output of logits, shape (N, num_classes) or (N, positions,'
                    ' num_classes); use loss="mse"'
                )
            self.class_dim = 1 if targets[0].dim() > 3 else -1
        self.scales = [1.0] if kind == "kl" else self._variances()

    def _variances(self) -> list[float]:
        """The variance of every target over the samples, so that outputs of different size count alike."""
        scales = []
        for number in range(len(self.pool.parts[0][1])):
            targets = [targets[number].double().flatten(1) for _, targets in self.pool.parts]
            if len({each.shape[1] for each in targets}) > 1:
                targets = [each.reshape(-1, 1) for each in targets]
            seen = torch.cat(targets)
            sums = torch.stack([torch.full_like(seen[0], len(seen)), seen.sum(0), seen.square().sum(0)])
            count, total, squares = self.calibration.reduce(sums)
            variance = float((squares / count - (total / count).square()).mean())
            scales.append(variance if variance > 0 else 1.0)
        return scales

    def __call__(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        if self.kind == "kl":
            found, wanted = (F.log_softmax(each[0].float(), self.class_dim) for each in (outputs, targets))
            return (wanted.exp() * (wanted - found)).sum(self.class_dim).mean()
        terms = [
            F.mse_loss(found, wanted) / scale
            for found, wanted, scale in zip(outputs, targets, self.scales, strict=True)
        ]
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean()

    def of_pool(self, model: nn.Module) -> float:
        """Return the mean over all calibration samples of all processes."""
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for inputs, targets in self.pool.parts:
                for start in range(0, len(inputs), 1024):
                    part = slice(start, start + 1024)
                    value = float(self(_outputs(model, inputs.taken(part)), [each[part] for each in targets]))
                    size = len(inputs.taken(part))
                    total += torch.tensor([value * size, size], dtype=torch.float64)
        total = self.calibration.reduce(total)
        return float(total[0] / total[1])
