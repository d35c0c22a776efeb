"""What compensation does to weights: rows of pruned neurons become zero, readers make up for what is gone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import PooledMoments, views_of
from mlprank.compensation import Refit, Regression, Targets
from mlprank.graph.program import Fill, Run, shape_of
from mlprank.graph.records import Graph, Layer, State

MAX_SEEN = 8192
"""Readers that see more entries of what is kept are mended by one coefficient a channel."""
_ROWS_PER_ENTRY = 8
_MANY_ROWS = 1 << 16
_MULTIPLICATIONS = 25 * 10**9
"""Positions are sampled: at least 8 rows for every entry that is seen, and where that is cheap 65,536."""
_MAX_BYTES = 2 << 30
_BLOCK = 256


def zero_rows(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return the weights with zero rows where masks of layers, shape (n_out,), are not True, as for kept neurons."""
    rows = zeroed_parameters(graph, state, masks, keeps_bias=keeps_bias)
    return {**state, **{name: state[name] * _along_rows(kept, state[name]) for name, kept in rows.items()}}


def _along_rows(rows: Tensor, parameter: Tensor) -> Tensor:
    """A mask of rows, shape (n,), or of any dimensions, in a shape that multiplies with the parameter."""
    return rows.view(-1, *[1] * (parameter.dim() - 1)) if rows.dim() == 1 else rows


def zeroed_parameters(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return what stays of which weights and biases, by parameter name.

    Shape (n_out,), True for rows that stay, where outputs are a parameter's first dimension; otherwise of all its
    dimensions, of size 1 where it makes no difference.
    """
    found: dict[str, Tensor] = {}
    for name, mask in masks.items():
        layer = graph.by_name[name]
        for parameter in (layer.weight,) if keeps_bias else (layer.weight, *layer.biases):
            if parameter in state:
                tensor, dim = state[parameter], layer.kind.weight_out if parameter == layer.weight else 0
                # Of a grouped transposed convolution every group loses the same.
                rows = mask.to(tensor.device)[: tensor.shape[dim]]
                rows = rows.view(*[1] * dim, -1, *[1] * (tensor.dim() - dim - 1)) if dim else rows
                known = found.get(parameter, rows)
                if known.shape != rows.shape:
                    known, rows = _along_rows(known, tensor), _along_rows(rows, tensor)
                found[parameter] = known & rows
    return found


class SideBySide:
    """A network before and after pruning on the same calibration batches, layer by layer in forward order.

    Both runs of a batch are halted where a layer reads and go on from there, so that all layers together cost two
    passes. Batches whose values do not fit into memory take no part; there is always one that does.
    """

    def __init__(self, graph: Graph, dense: State, calibration: Calibration, *, num_samples: int) -> None:
        self.graph, self.dense, self.calibration, self.num_samples = graph, dense, calibration, num_samples
        self._runs: list[tuple[Run, Run]] | None = None

    def read(
        self, state: State, nodes: Mapping[str, str], fills: Mapping[str, Fill]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Yield for every batch what operations read in the dense network and in the pruned one as it is now.

        `nodes` gives the value that each operation reads; none of them lies behind one that was asked for before.
        """
        program = self.graph.program
        ordered = sorted(nodes, key=program.order.__getitem__)
        for runs in self._started(state, ordered[0]):
            runs[1].state, runs[1].fills = state, fills
            for run in runs:
                run.until(ordered[0])
            found = {}
            ahead = [run.fork() for run in runs] if len(ordered) > 1 else runs
            for node in ordered:
                for run in ahead:
                    run.until(node)
                before, after = (run.argument(program.nodes[program.order[node]], nodes[node]) for run in ahead)
                found[node] = (before, after)
            yield found

    def _started(self, state: State, node: str) -> Iterator[tuple[Run, Run]]:
        """The runs of every batch; fresh ones where an operation is asked for that lies behind them."""
        program = self.graph.program
        if self._runs is not None and all(run.position <= program.order[node] for run, _ in self._runs):
            yield from self._runs
            return
        keeps = self._runs is None
        kept: list[tuple[Run, Run]] = []
        used = largest = 0
        for batch in self.calibration:
            if kept and used + largest > _MAX_BYTES:
                break
            runs = program.start(self.dense, batch), program.start(state, batch)
            yield runs
            held = [value for run in runs for value in run.values.values() if isinstance(value, Tensor)]
            size = sum(value.numel() * value.element_size() for value in held)
            used, largest = used + size, max(largest, size)
            kept.append(runs)
        self._runs = kept if keeps else self._runs

    def targets(self, state: State, readers: Sequence[Layer], kept: Tensor, fills: Mapping[str, Fill]) -> Targets:
        """Sum up what readers of one geometry see of kept inputs, shape (n_in,), and compute in the dense network."""
        first = readers[0]
        nodes = {call.node: call.source for call in first.calls}
        kinds = {call.node: call.kind for call in first.calls}
        weights = [self.dense[layer.weight] for layer in readers]
        groups, _, per_group, patch = first.kind.flat(weights[0]).shape
        outputs = sum(first.kind.flat(weight).shape[1] for weight in weights)
        inputs = kept[:per_group].nonzero().flatten()
        seen = len(inputs) * patch
        rows = max(_ROWS_PER_ENTRY * seen, min(_MANY_ROWS, _MULTIPLICATIONS // seen**2))
        positions = max(1, math.ceil(rows / max(1, self.num_samples)))
        total = torch.zeros(groups, seen + 1, seen + 1 + outputs, dtype=torch.float64, device=kept.device)
        program = self.graph.program
        shapes = {node: shape_of(program.nodes[program.order[source]]) for node, source in nodes.items()}
        for batch in self.read(state, nodes, fills):
            for node, (before, after) in batch.items():
                if any(str(size).startswith("u") for size in shapes[node]):
                    before = after  # which rows arrive depends on the data: those of the two networks are no pairs
                x = kinds[node].patches(after, inputs, positions).flatten(2)
                z = [kinds[node].outputs(before, weight, positions) for weight in weights]
                pairs = torch.cat([x, x.new_ones(groups, x.shape[1], 1), *z], dim=2).double()
                for start in range(0, seen + 1, _BLOCK):  # of a symmetric matrix half is enough
                    end = min(start + _BLOCK, seen + 1)
                    total[:, start:end, start:] += pairs[..., start:end].transpose(1, 2) @ pairs[..., start:]
        total = self.calibration.reduce(total)
        count = float(total[0, seen, seen])
        mean, target_mean = total[:, :seen, seen] / max(count, 1), total[:, seen, seen + 1 :] / max(count, 1)
        products, means = total[:, :seen, :seen].triu(), count * mean[:, :, None]
        gram = products + products.triu(1).transpose(1, 2) - means * mean[:, None, :]
        cross = total[:, :seen, seen + 1 :] - means * target_mean[:, None, :]
        return Targets(count, mean, gram, target_mean, cross)


def can_refit(layer: Layer, kept: Tensor, flat_patch: int) -> bool:
    """Whether whole weights of a reader can be fitted anew."""
    seen = int(kept[: len(kept) // layer.kind.groups].sum()) * flat_patch
    return all(call.kind.refits for call in layer.calls) and not layer.tied and seen <= MAX_SEEN


def refit(state: State, readers: Sequence[Layer], kept: Tensor, targets: Targets, *, by: Refit) -> dict[str, Tensor]:
    """Return the weights with readers fitted to what they computed in the dense network.

    For what a reader sees of its kept inputs, c, and what it computed, z (without its bias), its weights there become
    W' and its bias moves by `mean(z) - W' mean(c)`; its weights on pruned inputs become zero. A reader that has no
    place for a bias is fitted without an intercept. Biases that did not exist are in the new state under the name that
    they will have.
    """
    changed = dict(state)
    start = 0
    for layer in readers:
        weight = state[layer.weight]
        flat = layer.kind.flat(weight)
        mask = kept[: flat.shape[2]].to(weight.device)
        end = start + flat.shape[1]
        own = replace(targets, target_mean=targets.target_mean[:, start:end], cross=targets.cross[:, :, start:end])
        start = end
        places = dict.fromkeys(call.bias_place for call in layer.calls)
        own = own.uncentred() if None in places else own
        fitted = by.refit(own, flat[:, :, mask].flatten(2))
        new = torch.zeros_like(flat)
        new[:, :, mask] = fitted.unflatten(2, (-1, flat.shape[3])).to(weight.dtype)
        changed[layer.weight] = layer.kind.unflat(new, weight).contiguous()
        shift = (own.target_mean - (fitted @ own.mean[:, :, None])[:, :, 0]).flatten()
        _move_biases(changed, places, shift, like=weight)
    return changed


def predict(
    graph: Graph, state: State, layer: Layer, masks: Mapping[str, Tensor], moments: PooledMoments, *, by: Regression
) -> dict[str, Tensor]:
    """Return the weights with a reader making up for pruned neurons by kept ones of their group, a coefficient each.

    For the weights W of a reader, `W_K += W_P B^T` at every position of the kernel and `b += W_P (mean_P - B^T
    mean_K)`; its weights on pruned neurons become zero. A reader that has no place for a bias is regressed without an
    intercept. Masks of groups are by name, shape (width,), True for kept neurons; biases that did not exist are in the
    new state under the name that they will have.
    """
    changed, weight = dict(state), state[layer.weight]
    places = dict.fromkeys(call.bias_place for call in layer.calls)
    flat = layer.kind.flat(weight).double().clone()  # (groups, outputs, inputs, patch)
    shift = flat.new_zeros(flat.shape[:2])
    for index in layer.read_groups:
        mask = masks.get(graph.groups[index].name)
        if mask is None or bool(mask.all()):
            continue
        mask = mask.to(weight.device)
        for view in views_of(layer, index):
            part, inside = divmod(view.start, flat.shape[2])
            own = flat[part, :, inside : inside + view.width * view.block]
            own = own.view(len(own), view.width, view.block, -1)  # changes of it are changes of `flat`
            pruned = own[:, ~mask].clone()
            if view in moments and not layer.tied:
                seen = moments[view]
                prediction = by.predict(seen.uncentred() if None in places else seen, mask)
                own[:, mask] += torch.einsum("opbk,qp->oqbk", pruned, prediction.coefficients)
                shift[part] += pruned.sum((2, 3)) @ prediction.intercept
            own[:, ~mask] = 0
    if not layer.tied:
        changed[layer.weight] = layer.kind.unflat(flat.to(weight.dtype), weight).contiguous()
        _move_biases(changed, places, shift.flatten(), like=weight)
    return changed


def _move_biases(state: dict[str, Tensor], places: Iterable[str | None], shift: Tensor, *, like: Tensor) -> None:
    """Add to biases, new ones where there are none."""
    for place in places:
        if place is not None:
            state[place] = (state[place].double() + shift if place in state else shift).to(like.dtype)


def same_geometry(layers: Iterable[Layer]) -> bool:
    """Whether layers read the same values in the same way."""
    return len({(layer.sources, layer.read, tuple(call.kind for call in layer.calls)) for layer in layers}) == 1
