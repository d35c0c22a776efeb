"""AutoAugment, RandAugment and AugMix on batches, with draws of its own for every image.

`torchvision.transforms.v2` applies one operation with one magnitude to a whole batch. Here the images of a batch are
grouped by operation, and every group is one call of torchvision's kernels or of one resampling, so that the variety
within a batch is that of augmenting image by image.
"""

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.v2 import functional

TRANSLATE_SHARE = 150 / 331  # of the width or the height, as AutoAugment translates at most 150 of 331 pixels
POSTERIZE_BITS = 8


class Operation(IntEnum):
    """The operations that AutoAugment and its successors draw from."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    INVERT = 14


_LAST_WARP = Operation.ROTATE
_LAST_SIGNED = Operation.SHARPNESS


def draw_magnitudes(
    operations: Tensor,
    strengths: Tensor,
    *,
    size: tuple[int, int],
    generator: torch.Generator,
    translate_share: float = TRANSLATE_SHARE,
    posterize_bits: int = POSTERIZE_BITS,
) -> Tensor:
    """Return what strengths mean for operations, with a random sign where an operation has two directions.

    Args:
        operations: `Operation` of every image, shape (n,), int64.
        strengths: Shape (n,), in [0, 1]; 0 leaves an image as it is, except for posterising from fewer than 8 bits.
        size: Height and width of the images in pixels.
        generator: CPU generator of the signs.
        translate_share: Share of the width or height by which strength 1 translates.
        posterize_bits: Bits that strength 0 leaves; strength 1 leaves 4 fewer.

    Returns:
        Magnitudes, shape (n,): shear as a slope, translation in pixels, rotation in degrees, brightness and the like as
        a factor less 1, posterising in bits, solarising as a share of the brightest value.
    """
    height, width = size
    largest = torch.zeros(len(Operation))
    largest[[Operation.SHEAR_X, Operation.SHEAR_Y]] = 0.3
    largest[Operation.TRANSLATE_X] = translate_share * width
    largest[Operation.TRANSLATE_Y] = translate_share * height
    largest[Operation.ROTATE] = 30.0
    largest[Operation.BRIGHTNESS : Operation.SHARPNESS + 1] = 0.9
    magnitudes = largest[operations] * strengths
    signs = torch.rand(len(operations), generator=generator) <= 0.5
    magnitudes = torch.where(signs & (operations <= _LAST_SIGNED), -magnitudes, magnitudes)
    magnitudes = torch.where(operations == Operation.POSTERIZE, (posterize_bits - 4 * strengths).round(), magnitudes)
    return torch.where(operations == Operation.SOLARIZE, 1 - strengths, magnitudes)


def apply_operations(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply to every image its own operation.

    Args:
        images: Shape (n, C, H, W) with C 1 or 3, uint8, on any device.
        operations: `Operation` of every image, shape (n,), int64, on the CPU.
        magnitudes: What `draw_magnitudes` returned, shape (n,), on the CPU.

    Returns:
        A new batch, same shape, type and device.
    """
    result = images.clone()
    warped = (operations > Operation.IDENTITY) & (operations <= _LAST_WARP)
    groups: list[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = []
    if warped.any():
        groups.append((warped, lambda group, amounts: _warp(group, operations[warped], amounts)))
    present = torch.unique(operations[~warped & (operations != Operation.IDENTITY)]).tolist()
    groups += [(operations == operation, _KERNELS[Operation(operation)]) for operation in present]
    for mask, kernel in groups:
        rows = mask.nonzero().flatten().to(images.device)
        result.index_copy_(0, rows, kernel(images.index_select(0, rows), magnitudes[mask]))
    return result


def _warp(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Shear, translate and rotate by one bilinear resampling; what comes in from outside is black.

    A point of the result at (x, y), in pixels from the centre, is taken from (a x + b y + s, c x + d y + t).
    """
    height, width = images.shape[-2:]
    none, slope = torch.zeros_like(magnitudes), {}
    for operation in (Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X, Operation.TRANSLATE_Y):
        slope[operation] = torch.where(operations == operation, magnitudes, none)
    angle = torch.where(operations == Operation.ROTATE, magnitudes, none).deg2rad()
    shear_x, shear_y = slope[Operation.SHEAR_X], slope[Operation.SHEAR_Y]  # about the corner, as AutoAugment shears
    shift_x, shift_y = slope[Operation.TRANSLATE_X].trunc(), slope[Operation.TRANSLATE_Y].trunc()
    rows = [
        angle.cos(),
        (shear_x - angle.sin()) * height / width,
        (shear_x * height / 2 - shift_x) * 2 / width,
        (shear_y + angle.sin()) * width / height,
        angle.cos(),
        (shear_y * width / 2 - shift_y) * 2 / height,
    ]
    matrices = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.device)
    grid = affine_grid(matrices, list(images.shape), align_corners=False)
    sampled = grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _blend_with(degenerate: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an operation that moves images away from, or towards, what a torchvision adjustment gives at factor 0."""

    def blend(images: Tensor, magnitudes: Tensor) -> Tensor:
        pixels = images.float().div_(255)
        factors = magnitudes.view(-1, 1, 1, 1).to(images.device)
        blended = pixels + factors * (pixels - degenerate(pixels, 0.0))
        return blended.clamp_(0, 1).mul_(255).round_().to(torch.uint8)

    return blend


def _posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    kept = (256 - 2 ** (8 - magnitudes.long())).to(torch.uint8).view(-1, 1, 1, 1).to(images.device)
    return images & kept


def _solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    thresholds = magnitudes.mul(255).view(-1, 1, 1, 1).to(images.device)
    return torch.where(images >= thresholds, 255 - images, images)


_KERNELS: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.BRIGHTNESS: _blend_with(functional.adjust_brightness),
    Operation.COLOR: _blend_with(functional.adjust_saturation),
    Operation.CONTRAST: _blend_with(functional.adjust_contrast),
    Operation.SHARPNESS: _blend_with(functional.adjust_sharpness),
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.AUTO_CONTRAST: lambda images, _magnitudes: functional.autocontrast(images),
    Operation.EQUALIZE: lambda images, _magnitudes: functional.equalize(images),
    Operation.INVERT: lambda images, _magnitudes: functional.invert(images),
}


_SHX, _SHY, _TRX, _TRY, _ROT = range(Operation.SHEAR_X, Operation.ROTATE + 1)
_BRI, _COL, _CON, _SHA, _POS, _SOL, _AUT, _EQU, _INV = range(Operation.BRIGHTNESS, Operation.INVERT + 1)

# (operation, probability in tenths, level of 0 to 9), twice: the 25 sub-policies that AutoAugment found for CIFAR-10.
CIFAR10_POLICY: tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...] = (
    ((_INV, 1, 0), (_CON, 2, 6)),
    ((_ROT, 7, 2), (_TRX, 3, 9)),
    ((_SHA, 8, 1), (_SHA, 9, 3)),
    ((_SHY, 5, 8), (_TRY, 7, 9)),
    ((_AUT, 5, 0), (_EQU, 9, 0)),
    ((_SHY, 2, 7), (_POS, 3, 7)),
    ((_COL, 4, 3), (_BRI, 6, 7)),
    ((_SHA, 3, 9), (_BRI, 7, 9)),
    ((_EQU, 6, 0), (_EQU, 5, 0)),
    ((_CON, 6, 7), (_SHA, 6, 5)),
    ((_COL, 7, 7), (_TRX, 5, 8)),
    ((_EQU, 3, 0), (_AUT, 4, 0)),
    ((_TRY, 4, 3), (_SHA, 2, 6)),
    ((_BRI, 9, 6), (_COL, 2, 8)),
    ((_SOL, 5, 2), (_INV, 0, 0)),
    ((_EQU, 2, 0), (_AUT, 6, 0)),
    ((_EQU, 2, 0), (_EQU, 6, 0)),
    ((_COL, 9, 9), (_EQU, 6, 0)),
    ((_AUT, 8, 0), (_SOL, 2, 8)),
    ((_BRI, 1, 3), (_COL, 7, 0)),
    ((_SOL, 4, 5), (_AUT, 9, 0)),
    ((_TRY, 9, 9), (_TRY, 7, 9)),
    ((_AUT, 9, 0), (_SOL, 8, 3)),
    ((_EQU, 8, 0), (_INV, 1, 0)),
    ((_TRY, 7, 9), (_AUT, 9, 0)),
)
RANDAUGMENT_LEVELS = 31
AUGMIX_LEVELS = 10


def auto_augment(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Apply to every image one of AutoAugment's 25 sub-policies for CIFAR-10.

    Args:
        images: Shape (n, C, H, W) with C 1 or 3, uint8.
        generator: CPU generator of the draws.

    Returns:
        A new batch, same shape, type and device.

    Source:
        Cubuk et al. 2019, "AutoAugment: Learning Augmentation Policies from Data", arXiv:1805.09501, table 7.
    """
    chosen = torch.randint(len(CIFAR10_POLICY), (len(images),), generator=generator)
    for operations, tenths, levels in torch.tensor(CIFAR10_POLICY)[chosen].permute(1, 2, 0):
        applied = torch.rand(len(images), generator=generator) < tenths / 10
        operations = torch.where(applied, operations, Operation.IDENTITY)
        magnitudes = draw_magnitudes(operations, levels / 9, size=_size(images), generator=generator)
        images = apply_operations(images, operations, magnitudes)
    return images


def rand_augment(images: Tensor, *, generator: torch.Generator, magnitude: int = 9, num_operations: int = 2) -> Tensor:
    """Apply to every image some operations, drawn uniformly, of one strength.

    Args:
        images: Shape (n, C, H, W) with C 1 or 3, uint8.
        generator: CPU generator of the draws.
        magnitude: Strength, 0 to 30.
        num_operations: How many operations an image gets, one after the other.

    Returns:
        A new batch, same shape, type and device.

    Source:
        Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space",
        arXiv:1909.13719.
    """
    strengths = torch.full((len(images),), magnitude / (RANDAUGMENT_LEVELS - 1))
    for _ in range(num_operations):
        operations = torch.randint(Operation.IDENTITY, Operation.INVERT, (len(images),), generator=generator)
        magnitudes = draw_magnitudes(operations, strengths, size=_size(images), generator=generator)
        images = apply_operations(images, operations, magnitudes)
    return images


def aug_mix(
    images: Tensor, *, generator: torch.Generator, severity: int = 3, num_chains: int = 3, max_depth: int = 3
) -> Tensor:
    """Mix every image with the ends of several chains of operations, by weights of its own.

    Args:
        images: Shape (n, C, H, W) with C 1 or 3, uint8.
        generator: CPU generator of the draws.
        severity: Number of levels to draw strengths from, 1 to 10.
        num_chains: Number of chains.
        max_depth: Largest number of operations in a chain.

    Returns:
        A new batch, same shape, type and device.

    Source:
        Hendrycks et al. 2020, "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty",
        arXiv:1912.02781.
    """
    # Uniform shares of the chains, and of the plain image against all chains: Dirichlet and beta with parameter 1.
    weights = torch.empty(num_chains, len(images)).exponential_(generator=generator)
    plain = torch.rand(len(images), generator=generator)
    weights = weights / weights.sum(0) * (1 - plain)
    chains = images.repeat(num_chains, 1, 1, 1)  # all chains in one batch: fewer, larger groups
    count = len(chains)
    depths = torch.randint(1, max_depth + 1, (count,), generator=generator)
    for depth in range(max_depth):
        operations = torch.randint(Operation.SHEAR_X, Operation.INVERT, (count,), generator=generator)
        operations = torch.where(depth < depths, operations, Operation.IDENTITY)
        strengths = torch.randint(severity, (count,), generator=generator) / (AUGMIX_LEVELS - 1)
        magnitudes = draw_magnitudes(
            operations, strengths, size=_size(images), generator=generator, translate_share=1 / 3, posterize_bits=4
        )
        chains = apply_operations(chains, operations, magnitudes)
    weighted = chains * _column(weights.flatten(), images)
    mixed = images * _column(plain, images) + weighted.view(num_chains, *images.shape).sum(0)
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).to(images.device)
