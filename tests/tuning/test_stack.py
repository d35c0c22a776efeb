"""A stack of K networks computes what the K networks compute by themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlprank.models import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP
from mlprank.tuning.stack import CannotStackError, Stack

THESIS = [TwoLayerMLP, ThreeLayerMLP, SixLayerMLP, TwelveLayerMLP]


class Mixed(nn.Module):
    """Everything that a stack knows: shared batch norm, residual, in-place and smooth activations, a gain, dropout."""

    def __init__(self, p=0.0):
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(12, 7)
        self.fc2 = nn.Linear(7, 7, bias=False)
        self.norm = nn.BatchNorm1d(7)
        self.free = nn.BatchNorm1d(7, affine=False, track_running_stats=False)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 7))
        self.last = nn.Linear(7, 5)
        self.inplace = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        if x.shape[1:] != (3, 2, 2):
            raise ValueError(f"images are {tuple(x.shape[1:])}")
        first = self.norm(self.inplace(self.fc1(self.flatten(x))))
        second = self.norm(F.gelu(self.fc2(first))) * self.gain + first
        return self.last(self.dropout(self.free(second)))


def networks(make, count):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(make().double())
    return made


@pytest.mark.parametrize("make", [Mixed, lambda: MLP(12, [9, 6], 5), lambda: TwoLayerMLP(12), lambda: SixLayerMLP(12)])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_stack_computes_what_its_networks_compute(make, shared, training):
    alone = networks(make, 3)
    stack = Stack(alone, in_shape=(3, 2, 2)).train(training)
    torch.manual_seed(9)
    batch = torch.randn(*(() if shared else (3,)), 6, 3, 2, 2, dtype=torch.float64)
    scores = stack(batch)
    for k, network in enumerate(alone):
        expected = network.train(training)(batch if shared else batch[k])
        torch.testing.assert_close(scores[k].T, expected, rtol=0, atol=1e-12)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(stack.unstack(k)[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", THESIS)
def test_the_networks_of_the_thesis_can_be_stacked_and_taken_apart(make):
    alone = [make(in_features=12), make(in_features=12)]
    state = Stack(alone, in_shape=(3, 2, 2)).unstack(1)
    assert list(state) == list(alone[1].state_dict())
    assert all(torch.equal(state[name], value) for name, value in alone[1].state_dict().items())


def test_gradients_are_those_of_the_networks_alone():
    alone = networks(Mixed, 3)
    stack = Stack(alone, in_shape=(3, 2, 2))
    batch = torch.randn(3, 6, 3, 2, 2, dtype=torch.float64)
    stack(batch).square().sum().backward()
    for k, network in enumerate(alone):
        network(batch[k]).square().sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(stack.tensors[name].grad[k], parameter.grad, rtol=1e-9, atol=1e-10)


def test_bound_networks_share_values_and_gradients_with_the_stack():
    alone = networks(Mixed, 2)
    stack = Stack(alone, in_shape=(3, 2, 2))
    stack.bind(alone)
    stack(torch.randn(4, 3, 2, 2, dtype=torch.float64)).sum().backward()
    with torch.no_grad():
        alone[1].fc1.weight.add_(1.0)
    assert torch.equal(stack.tensors["fc1.weight"][1], alone[1].fc1.weight)
    assert torch.equal(stack.tensors["fc1.weight"].grad[1], alone[1].fc1.weight.grad)
    assert torch.equal(stack.tensors["norm.running_mean"][0], alone[0].norm.running_mean)


@pytest.mark.parametrize("shared", [True, False])
def test_scores_and_gradients_of_a_trial_do_not_depend_on_the_others_to_the_bit(shared):
    alone = [network.float() for network in networks(lambda: SixLayerMLP(784), 5)]
    kept = [0, 2, 4]
    whole, rest = Stack(alone, in_shape=(784,)), Stack([alone[k] for k in kept], in_shape=(784,))
    with torch.no_grad():
        next(iter(whole.tensors.values()))[1] = float("nan")
    batch = torch.randn(*(() if shared else (5,)), 64, 784)
    scores, fewer = whole(batch), rest(batch if shared else batch[kept])
    assert torch.equal(scores[kept], fewer)
    scores.square().sum().backward()
    fewer.square().sum().backward()
    for name, _ in alone[0].named_parameters():
        assert torch.equal(whole.tensors[name].grad[kept], rest.tensors[name].grad), name


def test_dropout_of_a_trial_depends_on_its_own_seed_alone():
    alone = networks(lambda: Mixed(0.5), 3)
    whole = Stack(alone, in_shape=(3, 2, 2), seeds=[5, 6, 7])
    rest = Stack(alone[1:], in_shape=(3, 2, 2), seeds=[6, 7])
    batch = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    first = whole(batch)
    assert torch.equal(first[1:], rest(batch))
    assert not torch.equal(first, whole(batch))
    assert torch.equal(whole.eval()(batch), whole(batch))


def test_stacking_leaves_the_network_as_it_was():
    network = Mixed(0.5).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Stack([network], in_shape=(3, 2, 2))(torch.randn(4, 3, 2, 2))
    assert not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Written(nn.Module):
    """A forward pass given as a function."""

    def __init__(self, function):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.prelu = nn.PReLU()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


PLAIN = (
    "gelu",
    "hardsigmoid",
    "hardswish",
    "logsigmoid",
    "mish",
    "relu6",
    "silu",
    "softplus",
    "softsign",
    "tanhshrink",
)
IN_PLACE = ("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "selu_")


@pytest.mark.parametrize("name", [*PLAIN, *IN_PLACE, *(name.rstrip("_") for name in IN_PLACE)])
def test_every_activation_of_torch_can_be_stacked(name):
    alone = networks(lambda: Written(lambda net, x: getattr(F, name)(net.fc(x))), 2)
    batch = torch.randn(5, 4, dtype=torch.float64)
    scores = Stack(alone, in_shape=(4,))(batch)
    for k, network in enumerate(alone):
        torch.testing.assert_close(scores[k].T, network(batch), rtol=0, atol=1e-12)


def overwrite_a_view(net, x):
    hidden = net.fc(x)
    view = hidden.view(-1, 4)
    hidden.relu_()
    return view + 0


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.prelu(net.fc(x)),
        lambda net, x: net.fc(x).softmax(-1),
        lambda net, x: F.linear(x, net.fc.weight * 2),
        lambda net, x: net.fc(x) - x.mean(0),
        lambda net, x: net.fc(x) * torch.arange(4.0, dtype=x.dtype),
        overwrite_a_view,
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_attention_views_and_weights_that_are_computed_can_be_stacked(function, shared):
    alone = networks(lambda: Written(function), 3)
    batch = torch.randn(*(() if shared else (3,)), 5, 4, dtype=torch.float64)
    scores = Stack(alone, in_shape=(4,))(batch)
    for k, network in enumerate(alone):
        torch.testing.assert_close(scores[k].T, network(batch if shared else batch[k]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda net, x: F.rrelu(net.fc(x), training=net.training), "torch.vmap: .*rrelu"),
        (lambda net, x: net.fc(x) + torch.rand_like(x), "torch.vmap: .*random operation"),
        (lambda net, x: net.fc(x).sum(0, keepdim=True), r"returns \(1, 4\) for 3 samples"),
        (lambda net, x: net.fc(x) if x.sum() > 0 else x, "Written cannot be computed by torch.vmap: .*control flow"),
        (lambda net, x: (net.fc(x), x), "Written returns .*; a stack needs one score a class"),
        (lambda net, x: net.fc(x).unsqueeze(-1) + 0, r"returns \(3, 4, 1\) for 3 samples"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(function, message):
    with pytest.raises(CannotStackError, match=message):
        Stack([Written(function)], in_shape=(4,))


def test_tied_weights_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    with pytest.raises(CannotStackError, match=r"'0.weight' and '2.weight' are one tensor"):
        Stack([network], in_shape=(4,))


def test_convolutions_are_refused():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(CannotStackError, match=r"'0' is a convolution, which is slower in a stack"):
        Stack([network], in_shape=(1, 4, 4))


def test_networks_of_two_shapes_are_refused():
    with pytest.raises(CannotStackError, match=r"differ in more than numbers: stack expects .* equal size"):
        Stack([TwoLayerMLP(12), TwoLayerMLP(13)], in_shape=(12,))


def test_mixed_precision_computes_hidden_layers_in_bfloat16_as_training_alone_does():
    alone = [network.float() for network in networks(lambda: SixLayerMLP(12), 2)]
    batch = torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        scores = Stack(alone, in_shape=(12,)).eval()(batch)
        expected = torch.stack([network.eval()(batch) for network in alone])
    assert scores.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(scores.mT, expected, rtol=0.02, atol=0.02)


def test_a_batch_for_another_number_of_trials_is_refused():
    stack = Stack(networks(Mixed, 2), in_shape=(3, 2, 2))
    with pytest.raises(ValueError, match="holds no batch for each of 2 trials"):
        stack(torch.zeros(3, 4, 3, 2, 2, dtype=torch.float64))
