"""Which neurons let the layers above rebuild their input: greedy selection on Gram matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.measures.record import LayerRecord, Reader, normalise_scores, score_dtype

# A neuron with less than this share of the mean variance left is a combination of those already taken.
_SPANNED = 1e-4
# Steps between two full deflations; within them only what a step looks at is brought up to date.
_BLOCK_STEPS = 64


def reconstruction_gains(readers: Sequence[Reader], *, place: str = "") -> Float[Tensor, " n_out"]:
    """Return how much each neuron of a layer adds to rebuilding what the readers compute.

    Greedy selection (orthogonal matching pursuit with many targets). With ``G`` a reader's centred Gram matrix,
    ``V`` its weights and ``A = G V^T``, every step takes the neuron ``j`` with the largest gain, the sum over the
    readers of ``‖A_j‖² / G_jj``, and deflates every reader by it. A neuron whose ``G_jj`` is below 1e-4 of the mean of
    the original diagonal is spanned by those taken: it gains nothing from that reader. Readers that share a Gram matrix
    (the same object) count as one with stacked weights.

    Readers, at least one, have weights (m, n_out) and Gram matrices (n_out, n_out). Returned is the gain at the step
    that takes the neuron, shape (n_out,), float64, in units of ``V G V^T``, larger meaning keep; the sum is what all
    neurons together explain. Errors begin with the `place`.

    Source:
        Orthogonal matching pursuit (Pati et al. 1993), for several targets at once (Tropp et al. 2006).
    """
    if not readers:
        raise ValueError("readers is empty; a neuron that nothing reads has nothing to rebuild")
    size, joined = readers[0].gram.shape[0], dict[int, list[Tensor]]()
    for index, reader in enumerate(readers):
        if tuple(reader.gram.shape) != (size, size) or reader.weight.ndim != 2 or reader.weight.shape[1] != size:
            raise ValueError(
                f"{place}readers[{index}]: weight of shape {tuple(reader.weight.shape)} and gram of shape "
                f"{tuple(reader.gram.shape)} do not fit {size} neurons; they must be (m, {size}) and ({size}, {size})"
            )
        for argument, values in (("weight", reader.weight), ("gram", reader.gram)):
            if not bool(values.isfinite().all()):
                what = f"{place}readers[{index}]: {argument}"
                raise ValueError(f"{what} has a NaN or infinite entry; look at calibration data and weights")
        gram = reader.gram.detach().to(torch.float64)
        joined.setdefault(id(reader.gram), [gram]).append(reader.weight.detach().to(gram))
    systems = [_System(gram, torch.cat(weights)) for gram, *weights in joined.values()]
    gains = gram.new_zeros(size)
    neurons = torch.arange(size, device=gains.device)
    while neurons.numel():
        for _ in range(_BLOCK_STEPS):
            gain = torch.stack([system.gain() for system in systems]).sum(0)
            chosen = int(gain.argmax())
            if not bool(gain[chosen] > 0):
                return gains
            gains[neurons[chosen]] = sum(system.take(chosen) for system in systems)
        for system in systems:
            system.fold()
        # What was taken is spanned.
        rows = torch.stack([system.usable() for system in systems]).any(0).nonzero()[:, 0]
        neurons = neurons[rows]
        for system in systems:
            system.begin(system.gram[rows][:, rows], system.image[rows])
    return gains


class _System:
    """The deflated ``G`` and ``A`` of one set of readers, updated lazily."""

    # Deflating by neuron j subtracts ``u u^T`` from ``G`` and ``u v^T`` from ``A``, with ``u = G_:j / sqrt(G_jj)`` and
    # ``v = A_j / sqrt(G_jj)``. The vectors of a block of steps are kept and subtracted as one matrix product; in
    # between, the diagonal of ``G`` and the row norms of ``A``, which are all that a gain needs, follow step by step.

    def __init__(self, gram: Float[Tensor, "n n"], weight: Float[Tensor, "m n"]) -> None:
        self.floor = max(0.0, float(_SPANNED * gram.diagonal().mean()))
        image = gram @ weight.t()
        if image.shape[1] > image.shape[0]:
            # Only inner products of rows are ever used: the triangular factor has the same ones.
            image = torch.linalg.qr(image.t(), mode="r").R.t().contiguous()
        self.begin(gram.clone(), image)

    def begin(self, gram: Float[Tensor, "n n"], image: Float[Tensor, "n m"]) -> None:
        """Begin a block of steps."""
        self.gram, self.image = gram, image
        self.variance, self.energy = gram.diagonal().clone(), image.square().sum(1)
        self.columns = gram.new_zeros((_BLOCK_STEPS, image.shape[0]))
        self.rows = gram.new_zeros((_BLOCK_STEPS, image.shape[1]))
        self.pending = 0

    def usable(self) -> Bool[Tensor, " n"]:
        """Return which neurons are not spanned by those taken."""
        return self.variance > self.floor

    def gain(self) -> Float[Tensor, " n"]:
        """Return ``‖A_j‖² / G_jj`` of every neuron; 0 where it is spanned."""
        usable = self.usable()
        return self.energy.clamp(min=0.0).where(usable, 0.0) / self.variance.where(usable, 1.0)

    def take(self, chosen: int) -> float:
        """Deflate by one neuron and return what it gained; one that is spanned here gains 0."""
        pivot = float(self.variance[chosen])
        if pivot <= self.floor:
            return 0.0
        columns, rows = self.columns[: self.pending], self.rows[: self.pending]
        column = (self.gram[chosen] - torch.mv(columns.t(), columns[:, chosen])) / pivot**0.5
        row = (self.image[chosen] - torch.mv(rows.t(), columns[:, chosen])) / pivot**0.5
        gained = torch.dot(row, row)
        overlap = torch.mv(self.image, row) - torch.mv(columns.t(), torch.mv(rows, row))
        self.variance -= column.square()
        self.energy -= column * (2.0 * overlap - gained * column)
        self.variance[chosen] = 0.0  # whatever rounding leaves
        self.columns[self.pending], self.rows[self.pending] = column, row
        self.pending += 1
        return float(gained)

    def fold(self) -> None:
        """Subtract the kept vectors from the full matrices."""
        columns, rows = self.columns[: self.pending], self.rows[: self.pending]
        self.image.addmm_(columns.t(), rows, alpha=-1.0)
        self.gram.addmm_(columns.t(), columns, alpha=-1.0)
        self.variance = self.gram.diagonal()


@dataclass(frozen=True)
class Reconstruction:
    """Greedy reconstruction of the readers' input; it has no parameters.

    It ranks a layer on the already pruned layers below. The output layer, which nothing reads, is ranked by the
    norms of what it emits: to rebuild the outputs themselves, each with equal weight, the strongest matter most.

    Raises:
        ValueError: On a call, if a reader's shapes do not fit or hold NaN; the message names the layer.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> layer = LayerRecord("fc1", torch.eye(2), torch.ones(2) / 2, torch.ones(2), torch.tensor([1.0, 2.0]))
        >>> Reconstruction()(layer)
        tensor([0.3333, 0.6667])
    """

    reads_pruned: ClassVar[bool] = True

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores."""
        readers, own, place = layer.readers(), layer.weight.shape[0], f'layer "{layer.name}": '
        if readers and (num := readers[0].gram.shape[0]) != own:
            raise ValueError(f"{place}its readers have {num} neurons, its weight {own}; give its own")
        gains = reconstruction_gains(readers, place=place) if readers else layer.output_norms.to(torch.float64)
        return normalise_scores(gains).to(device=layer.weight.device, dtype=score_dtype(layer.weight))
