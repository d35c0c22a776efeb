"""AutoAugment, RandAugment and AugMix on batches, with draws of its own for every image."""

import torch
from torch import Tensor

from mlprank.datamodules.image_operations import Operation, apply_operations, draw_magnitudes

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
