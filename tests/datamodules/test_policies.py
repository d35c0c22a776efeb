import functools

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from mlprank.datamodules import policies
from mlprank.datamodules.policies import Operation, apply_operations, draw_magnitudes

BILINEAR = InterpolationMode.BILINEAR


def batch(count=6, *, channels=3, height=24, width=32):
    """Return smooth random images that do not reach over all grey levels, so that every operation changes them."""
    noise = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return smooth.mul(180).add(30).to(torch.uint8)


def shear(image, x, y):
    degrees = [float(torch.tensor(slope).atan().rad2deg()) for slope in (x, y)]
    return functional.affine(image, 0.0, [0, 0], 1.0, degrees, interpolation=BILINEAR, center=[0, 0])


def shift(image, x, y):
    return functional.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0], interpolation=BILINEAR)


TORCHVISION = {
    Operation.IDENTITY: lambda image, _: image,
    Operation.SHEAR_X: lambda image, slope: shear(image, slope, 0.0),
    Operation.SHEAR_Y: lambda image, slope: shear(image, 0.0, slope),
    Operation.TRANSLATE_X: lambda image, pixels: shift(image, pixels, 0),
    Operation.TRANSLATE_Y: lambda image, pixels: shift(image, 0, pixels),
    Operation.ROTATE: lambda image, degrees: functional.rotate(image, degrees, interpolation=BILINEAR),
    Operation.BRIGHTNESS: lambda image, more: functional.adjust_brightness(image, 1 + more),
    Operation.COLOR: lambda image, more: functional.adjust_saturation(image, 1 + more),
    Operation.CONTRAST: lambda image, more: functional.adjust_contrast(image, 1 + more),
    Operation.SHARPNESS: lambda image, more: functional.adjust_sharpness(image, 1 + more),
    Operation.POSTERIZE: lambda image, bits: functional.posterize(image, int(bits)),
    Operation.SOLARIZE: lambda image, share: functional.solarize(image, 255 * share),
    Operation.AUTO_CONTRAST: lambda image, _: functional.autocontrast(image),
    Operation.EQUALIZE: lambda image, _: functional.equalize(image),
    Operation.INVERT: lambda image, _: functional.invert(image),
}


def draw(operations, strengths, *, seed=0, size=(24, 32), **options):
    generator = torch.Generator().manual_seed(seed)
    return draw_magnitudes(operations, strengths, size=size, generator=generator, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", list(Operation))
def test_a_batch_with_a_magnitude_per_image_equals_torchvision_image_by_image(operation, channels):
    images = batch(channels=channels)
    operations = torch.full((6,), operation)
    magnitudes = draw(operations, torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]))
    ours = apply_operations(images, operations, magnitudes)
    theirs = torch.stack(
        [TORCHVISION[operation](image, float(amount)) for image, amount in zip(images, magnitudes, strict=True)]
    )
    assert ours.dtype == torch.uint8
    assert (ours.int() - theirs.int()).abs().max() <= 2  # torchvision cuts to integers on the way, ours rounds once
    changed = not (channels == 1 and operation == Operation.COLOR) and operation != Operation.IDENTITY
    assert torch.equal(ours, images) != changed


def test_mixed_operations_equal_each_alone():
    operations = torch.arange(len(Operation))
    images = batch(len(Operation))
    magnitudes = draw(operations, torch.linspace(0.3, 1, len(Operation)))
    together = apply_operations(images, operations, magnitudes)
    for row in range(len(Operation)):
        alone = apply_operations(images[row : row + 1], operations[row : row + 1], magnitudes[row : row + 1])
        assert torch.equal(together[row], alone[0])


def test_the_batch_that_goes_in_stays_as_it_is():
    images = batch(len(Operation))
    before = images.clone()
    operations = torch.arange(len(Operation))
    apply_operations(images, operations, draw(operations, torch.ones(len(Operation))))
    assert torch.equal(images, before)


def test_strength_zero_changes_nothing():
    changing = {Operation.AUTO_CONTRAST, Operation.EQUALIZE, Operation.INVERT}
    operations = torch.tensor([operation for operation in Operation if operation not in changing])
    images = batch(len(operations))
    assert torch.equal(apply_operations(images, operations, draw(operations, torch.zeros(len(operations)))), images)


def test_magnitudes_are_autoaugments():
    operations = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11, 11])
    strengths = torch.tensor([1.0] * 9 + [1.0, 7 / 9, 1.0, 2 / 9])
    expected = [0.3, 0.3, 32 * 150 / 331, 24 * 150 / 331, 30, 0.9, 0.9, 0.9, 0.9, 4, 5, 0, 7 / 9]
    assert draw(operations, strengths).abs().tolist() == pytest.approx(expected)
    other = draw(operations, strengths, translate_share=1 / 3, posterize_bits=4).abs()
    assert other[2:4].tolist() == pytest.approx([32 / 3, 8])
    assert other[9:11].tolist() == [0, 1]


def test_signs_are_drawn_for_operations_with_two_directions_only():
    for operation in Operation:
        signs = draw(torch.full((200,), operation), torch.full((200,), 0.5)).sign().unique().tolist()
        assert (-1 in signs) == (Operation.SHEAR_X <= operation <= Operation.SHARPNESS)


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
