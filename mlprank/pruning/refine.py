"""Refinement without labels: a short distillation towards the dense network's outputs, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.calibration.data import Calibration
from mlprank.graph.program import Inputs, joined
from mlprank.surgery.narrow import network_state, with_state
from mlprank.utils.errors import check_choice, check_whole
from mlprank.utils.modules import evaluating

OnStep = Callable[[int, int], None]
"""Told after every step how many of how many are done."""


@dataclass(frozen=True)
class Refinement:
    """How a narrow network learns from the dense one; `refine=1000` stands for `Refinement(steps=1000)`.

    The loss is "mse", the mean squared error of the outputs, for any network; or "kl", the divergence of class
    probabilities, where the outputs are logits: probable classes then count more, which keeps more of the accuracy at
    high amounts. A ValueError says what is out of range.

    Examples:
        >>> Refinement(steps=500).learning_rate
        0.002
    """

    steps: int = 1000  # of Adam
    learning_rate: float = 2e-3  # of the first step; it falls to 0 along a cosine
    batch_size: int = 128  # calibration samples in a step, over all processes
    loss: Literal["mse", "kl"] = "mse"
    seed: int = 0  # of the order in which samples are drawn

    def __post_init__(self) -> None:
        check_whole("refine: ", steps=self.steps, batch_size=self.batch_size)
        check_whole("refine: ", least=0, seed=self.seed)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"refine: learning_rate={self.learning_rate!r} must be a positive number, such as 0.002")
        check_choice("refine: loss", self.loss, ("mse", "kl"))


def get_refinement(refine: int | Mapping[str, Any] | Refinement) -> Refinement | None:
    """Return the refinement that a number of steps, a description as YAML has it or an instance means; None for 0."""
    if isinstance(refine, Refinement):
        return refine
    if isinstance(refine, Mapping):
        known = [field.name for field in fields(Refinement)]
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

    Every step draws the same samples on every run; several processes draw each from their own and end with the same
    weights. All calibration data is held in memory, on the network's device. Both networks are left untouched.

    Returned are the refined network in the mode of the given one, and its loss on the calibration data before and
    after, as a share of what a constant output would lose ("mse"), or in nats ("kl"). It is never larger after. A
    ValueError says where it stops being a number, or nothing can be learned.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(narrow, dense):
        learner = with_state(narrow, network_state(narrow))
        parameters = [each for each in learner.parameters() if each.is_floating_point()]
        frozen = [each for each in parameters if not each.requires_grad]
        for each in parameters:
            each.requires_grad_(True)
        lesson = _Lesson(dense, calibration, by)
        before = lesson.whole_loss(learner)
        start = [each.detach().clone() for each in parameters]
        _train(learner, parameters, lesson, on_step)
        after = lesson.whole_loss(learner)
        if not math.isfinite(after):
            raise ValueError(
                f"refine: the loss became {after} with learning_rate={by.learning_rate}; give a smaller one, such as "
                f"refine={{'steps': {by.steps}, 'learning_rate': {by.learning_rate / 10:g}}}"
            )
        for each, old in zip(parameters, start, strict=True):
            if after > before:  # a few steps at a large rate can end higher than they began
                each.data.copy_(old)
            each.grad = None
        for each in frozen:
            each.requires_grad_(False)
    for module, given in zip(learner.modules(), narrow.modules(), strict=True):
        module.training = given.training
    return learner, (before, min(before, after))


def _train(learner: nn.Module, parameters: list[nn.Parameter], lesson: _Lesson, on_step: OnStep | None) -> None:
    """Run all steps of Adam."""
    by, reduce = lesson.by, lesson.calibration.reduce
    ranks = float(reduce(torch.ones(())))
    fused = all(each.device.type in ("cpu", "cuda") for each in parameters)
    optimizer = torch.optim.Adam(parameters, lr=by.learning_rate, fused=fused)
    for step, (inputs, targets) in enumerate(lesson.batches(ranks=round(ranks))):
        optimizer.param_groups[0]["lr"] = by.learning_rate * 0.5 * (1 + math.cos(math.pi * step / by.steps))
        value = lesson.loss(_outputs(learner, inputs), targets)
        if not value.requires_grad:
            raise ValueError(
                f"refine: the outputs of {type(learner).__name__} do not depend on its weights in a way that gives a "
                "gradient (its forward runs without autograd); leave out refine"
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if ranks > 1:  # every process takes the mean gradient; parameters without one have none on all of them
            gradients = [each.grad for each in parameters if each.grad is not None]
            mean = reduce(torch.cat([each.flatten() for each in gradients])) / ranks
            for each, part in zip(gradients, mean.split([each.numel() for each in gradients]), strict=True):
                each.copy_(part.view_as(each))
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, by.steps)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every floating-point tensor that a network returns."""
    return [each for each in inputs.outputs(model) if each.is_floating_point()]


class _Lesson:
    """Calibration inputs, what the dense network makes of them, in memory, and how far other outputs are from it."""

    def __init__(self, dense: nn.Module, calibration: Calibration, by: Refinement) -> None:
        self.calibration, self.by = calibration, by
        with torch.no_grad():
            self.parts = [(batch, _outputs(dense, batch)) for batch in calibration]
        first, wanted = self.parts[0]
        if not wanted:
            raise ValueError(f"refine: {type(dense).__name__} returns no floating-point tensor to learn from")
        # Batches of one shape are joined, so that a step can draw its samples from all; others are drawn as they are.
        if all(
            len(inputs) == len(each) and each.shape[1:] == one.shape[1:]
            for inputs, targets in self.parts
            for each, one in zip([*inputs.tensors, *targets], [*first.tensors, *wanted], strict=True)
            if each.dim()
        ):
            inputs, targets = zip(*self.parts, strict=True)
            self.parts = [(joined(inputs), [torch.cat(each) for each in zip(*targets, strict=True)])]
        if by.loss == "kl" and (len(wanted) != 1 or wanted[0].dim() < 2):
            raise ValueError('refine: loss="kl" needs one output of logits, (N, ..., num_classes); use loss="mse"')
        self.class_dim = 1 if wanted[0].dim() > 3 else -1
        self.scales: list[float] = []  # variances over the samples, so that outputs of different size count alike
        for number in range(len(wanted)) if by.loss == "mse" else ():
            flat = [targets[number].double().flatten(1) for _, targets in self.parts]
            if len({each.shape[1] for each in flat}) > 1:
                flat = [each.reshape(-1, 1) for each in flat]
            seen = torch.cat(flat)
            sums = torch.stack([torch.full_like(seen[0], len(seen)), seen.sum(0), seen.square().sum(0)])
            count, total, squares = calibration.reduce(sums)
            variance = float((squares / count - (total / count).square()).mean())
            self.scales.append(variance if variance > 0 else 1.0)

    def batches(self, *, ranks: int) -> Iterator[tuple[Inputs, list[Tensor]]]:
        """Yield inputs and targets of every step; a sample comes again when all others of its part have come."""
        generator = torch.Generator().manual_seed(self.by.seed)
        size = max(1, self.by.batch_size // ranks)
        queues = [torch.empty(0, dtype=torch.long) for _ in self.parts]
        for _ in range(self.by.steps):
            number = 0 if len(self.parts) == 1 else int(torch.randint(len(self.parts), (), generator=generator))
            (inputs, targets), queue = self.parts[number], queues[number]
            while len(queue) < min(size, len(inputs)):
                queue = torch.cat([queue, torch.randperm(len(inputs), generator=generator)])
            chosen, queues[number] = queue[:size].to(inputs.tensors[0].device), queue[size:]
            yield inputs[chosen], [each[chosen] for each in targets]

    def loss(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The distance of two lists of outputs."""
        if self.by.loss == "kl":
            found, wanted = (F.log_softmax(each[0].float(), self.class_dim) for each in (outputs, targets))
            return (wanted.exp() * (wanted - found)).sum(self.class_dim).mean()
        triples = zip(outputs, targets, self.scales, strict=True)
        terms = [F.mse_loss(found, wanted) / scale for found, wanted, scale in triples]
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean()

    def whole_loss(self, model: nn.Module) -> float:
        """Return the mean over all calibration samples of all processes."""
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for inputs, targets in self.parts:
                for start in range(0, len(inputs), 1024):
                    part = inputs[start : start + 1024]
                    value = self.loss(_outputs(model, part), [each[start : start + 1024] for each in targets])
                    total += torch.tensor([float(value) * len(part), len(part)], dtype=torch.float64)
        total = self.calibration.reduce(total)
        return float(total[0] / total[1])
