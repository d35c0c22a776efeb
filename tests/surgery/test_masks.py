"""Masks as torch knows them, with parameters in their places."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import mlprank
from mlprank.surgery.masks import (
    apply_masks,
    bake_masks,
    is_plain,
    mask_rows,
    masked_rows,
    match_masks,
    plain_copy,
    recompute_uncalled,
    sharpen_masks,
    write_weights,
)
from mlprank.surgery.narrow import narrow

KEPT = torch.tensor([True, False, True, True])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def names(module):
    return [name.removesuffix("_orig") for name, _ in module.named_parameters()]


def test_masking_and_baking_keep_parameters_the_same_objects_in_the_same_places():
    module = network()
    before, objects = names(module), [id(parameter) for parameter in module.parameters()]
    mask_rows(module, {"0.weight": KEPT, "2.bias": KEPT})
    assert names(module) == before
    assert [id(parameter) for parameter in module.parameters()] == objects
    bake_masks(module)
    assert [name for name, _ in module.named_parameters()] == before
    assert [id(parameter) for parameter in module.parameters()] == objects
    assert (module[0].weight == 0).all(1).tolist() == [False, True, False, False]


def test_torch_can_take_the_masks_away_itself():
    module = network()
    mask_rows(module, {"0.weight": KEPT})
    prune.remove(module[0], "weight")
    assert (module[0].weight == 0).all(1).tolist() == [False, True, False, False]


def test_rows_once_masked_stay_masked_and_the_mask_is_the_same_tensor():
    module = network()
    mask_rows(module, {"0.weight": KEPT})
    mask = module[0].weight_mask
    mask_rows(module, {"0.weight": torch.tensor([True, True, False, True])})
    assert module[0].weight_mask is mask
    assert masked_rows(module)["0.weight"].tolist() == [True, False, False, True]


def test_tied_weights_stay_tied_and_are_masked_together():
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    module[1].weight = module[0].weight
    mask_rows(module, {"0.weight": KEPT})
    assert module[0].weight_orig is module[1].weight_orig
    assert set(masked_rows(module)) == {"0.weight", "1.weight"}
    bake_masks(module)
    assert module[0].weight is module[1].weight


def test_an_optimizer_step_leaves_masked_rows_at_zero():
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), weight_decay=0.1)
    for step in range(4):
        if step == 2:
            mask_rows(module, {"0.weight": KEPT, "0.bias": KEPT})
        optimizer.zero_grad()
        module(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    module(torch.randn(1, 3))
    assert (module[0].weight == 0).all(1).tolist() == [False, True, False, False]
    assert module[0].bias[1] == 0


def test_weights_are_written_behind_the_mask_and_seen_at_once():
    module = network()
    mask_rows(module, {"0.weight": KEPT})
    write_weights(module, {"0.weight": torch.ones(4, 3), "0.bias": torch.zeros(4)})
    assert module[0].weight.sum(1).tolist() == [3, 0, 3, 3]
    assert module[0].bias.tolist() == [0] * 4


def test_a_masked_network_can_be_copied_after_a_training_step_masked_and_plain():
    module = network()
    mask_rows(module, {"0.weight": KEPT})
    module(torch.randn(2, 3)).sum().backward()
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(copy.deepcopy(module)(inputs), module(inputs))
    plain = plain_copy(module)
    assert is_plain(plain)
    assert not is_plain(module)
    torch.testing.assert_close(plain(inputs), module(inputs))


def test_a_module_takes_the_masks_of_a_state_dict_and_no_others():
    masked, dense = network(), network()
    mask_rows(masked, {"0.weight": KEPT})
    state, plain = masked.state_dict(), dense.state_dict()
    match_masks(dense, state)
    dense.load_state_dict(state)
    assert dense[0].weight_mask.equal(masked[0].weight_mask)
    match_masks(dense, plain)
    dense.load_state_dict(plain)
    assert is_plain(dense)


def test_blurred_masks_become_sharp_again():
    module = network()
    mask_rows(module, {"0.weight": KEPT})
    module[0].weight_mask.mul_(0.9).add_(0.05)
    sharpen_masks(module)
    mask_rows(module, {"0.weight": KEPT})
    assert module[0].weight_mask.tolist() == KEPT.float().view(4, 1).expand(4, 3).tolist()


def test_masks_of_someone_that_are_shares_stay_as_they_are():
    module = network()
    share = torch.full_like(module[2].weight, 0.7)
    prune.custom_from_mask(module[2], "weight", share)
    mask_rows(module, {"0.weight": KEPT})
    assert torch.equal(module[2].weight_mask, share)


class Reads(nn.Module):
    """Reads a layer's weights without calling it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"fc": nn.Linear(3, 4)})
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(F.linear(x, self.inner["fc"].weight, self.inner["fc"].bias)))


def test_weights_that_are_read_but_not_called_are_masked_and_trained():
    module = Reads()
    mask_rows(module, {"inner.fc.weight": KEPT, "inner.fc.bias": KEPT})
    recompute_uncalled(module, torch.randn(1, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module.inner["fc"].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    module(torch.randn(1, 3))
    assert not torch.equal(module.inner["fc"].weight, before)
    assert (module.inner["fc"].weight == 0).all(1).tolist() == [False, True, False, False]
    plain = plain_copy(module)
    assert len(plain._forward_pre_hooks) == 0


@pytest.mark.parametrize("method", ["local", "global"])
@pytest.mark.parametrize("measure", ["weighted_pagerank", "reconstruction", "norm"])
def test_amounts_are_absolute_and_masked_neurons_stay_pruned(method, measure):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    inputs, gone = torch.randn(200, 6), {}
    for amount, count in ((0.25, 10), (0.5, 20), (0.5, 20), (0.75, 30), (0.25, 30)):
        result = mlprank.prune(module, inputs, amount=amount, measure=measure, method=method)
        assert sum(int((~mask).sum()) for mask in result.masks.values()) == count
        assert all(not bool(mask[gone[name]].any()) for name, mask in result.masks.items() if name in gone)
        gone = {name: ~mask for name, mask in result.masks.items()}
        apply_masks(module, result.masked, result.parameter_masks)
        torch.testing.assert_close(result.model(inputs), module(inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8)], ids=lambda norm: type(norm).__name__
)
def test_masks_of_gains_say_that_a_network_normalises_over_kept_neurons_alone(norm):
    torch.manual_seed(0)
    module, fresh = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), copy.deepcopy(norm), nn.Linear(8, 3)).eval() for _ in "ab"
    )
    inputs = torch.randn(40, 6)
    result = mlprank.prune(module, inputs, amount=0.5)
    apply_masks(module, result.masked, result.parameter_masks)
    expected = result.model(inputs)
    torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=0)
    state = module.state_dict()
    match_masks(fresh, state)
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh(inputs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain_copy(fresh)(inputs), expected, atol=1e-5, rtol=0)
    narrow(fresh_plain := plain_copy(fresh), result.slices, biases=result.biases)
    assert fresh_plain(inputs).shape == expected.shape
    match_masks(fresh, dense := nn.Sequential(nn.Linear(6, 8), nn.Tanh(), norm, nn.Linear(8, 3)).state_dict())
    fresh.load_state_dict(dense)
    assert is_plain(fresh)
    assert not fresh[2]._forward_pre_hooks
