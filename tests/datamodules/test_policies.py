import functools

import pytest
import torch
from torchvision.transforms import v2

from mlprank.datamodules import policies
from mlprank.datamodules.image_operations import Operation
from tests.datamodules.test_image_operations import batch

POLICIES = [policies.auto_augment, policies.rand_augment, policies.aug_mix]
NAMES = ["AutoContrast" if name == "AUTO_CONTRAST" else name.title().replace("_", "") for name in Operation.__members__]


def run(policy, images, *, seed=0):
    return policy(images, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 12, 16)])
def test_shape_and_type_are_kept(policy, channels, height, width):
    images = batch(10, channels=channels, height=height, width=width)
    augmented = run(policy, images)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8


@pytest.mark.parametrize("policy", POLICIES)
def test_the_generator_determines_every_draw(policy):
    images = batch(64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(policy, images)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(run(policy, images), first)
    assert not torch.equal(run(policy, images, seed=1), first)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_images_of_a_batch_are_augmented_differently(policy):
    images = batch(1, height=32, width=32).repeat(64, 1, 1, 1)
    different = {image.numpy().tobytes() for image in run(policy, images)}
    assert len(different) > 25


@pytest.mark.parametrize("policy", POLICIES)
def test_a_single_image_is_a_batch(policy):
    assert run(policy, batch(1)).shape == (1, 3, 24, 32)


def test_the_policy_is_torchvisions():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    ours = [
        tuple((NAMES[operation], tenths / 10, level) for operation, tenths, level in policy)
        for policy in policies.CIFAR10_POLICY
    ]
    assert ours == [tuple((name, probability, level or 0) for name, probability, level in policy) for policy in theirs]


def test_autoaugment_draws_as_torchvision_does():
    """The share of images that stay as they are, and the mean change, agree with torchvision's, image by image."""
    images = batch(1, height=32, width=32).repeat(1500, 1, 1, 1)
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, interpolation=v2.InterpolationMode.BILINEAR)
    torch.manual_seed(0)
    reference = torch.stack([theirs(image) for image in images])
    ours = run(policies.auto_augment, images)
    for statistic in (
        lambda result: (result == images).flatten(1).all(1).double().mean(),
        lambda result: (result.double() - images).abs().mean() / 255,
        lambda result: (result == 0).double().mean(),
    ):
        assert float(statistic(ours)) == pytest.approx(float(statistic(reference)), abs=0.04)


def test_randaugment_without_strength_only_changes_what_has_no_strength():
    images = batch(64)
    weak = policies.rand_augment(images, generator=torch.Generator().manual_seed(0), magnitude=0)
    strong = policies.rand_augment(images, generator=torch.Generator().manual_seed(0), magnitude=30)
    unchanged = (weak == images).flatten(1).all(1)
    assert unchanged.double().mean() == pytest.approx((12 / 14) ** 2, abs=0.15)
    assert (strong == images).flatten(1).all(1).sum() < unchanged.sum()


def test_augmix_stays_between_its_chains():
    """With chains of one operation each that changes nothing, the mixture is the image itself."""
    images = torch.full((32, 3, 8, 8), 128, dtype=torch.uint8)
    images[..., 0, 0], images[..., 0, 1] = 0, 255
    one_chain = functools.partial(policies.aug_mix, num_chains=1, max_depth=1, severity=1)
    mixed = run(one_chain, images).int()
    assert (mixed - images.int()).abs().amax((1, 2, 3)).eq(0).any()
    assert mixed.min() >= 0
    assert mixed.max() <= 255
