"""Checks that labels are what a classifier can learn from."""

from pathlib import Path

from torch import Tensor


def check_range(labels: Tensor, *, num_classes: int, place: Path) -> None:
    """Check that there are labels and that every one is a class.

    Args:
        labels: Classes, shape (n,), integer.
        num_classes: Number of classes; labels lie in [0, num_classes).
        place: The file that the labels came from, for the message.

    Raises:
        ValueError: If there is no label or one is out of range.
    """
    if len(labels) == 0:
        raise ValueError(f"{place}: holds no images; replace the file by a complete one")
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{place}: label {int(labels[first])} of image {first} is outside [0, {num_classes}) "
            f"({len(outside)} such labels); the file is damaged or belongs to another data set"
        )


def check_several_classes(labels: Tensor, *, place: Path) -> None:
    """Check that the labels are not all the same.

    Args:
        labels: Classes, shape (n,), at least one.
        place: The file or the directory that the labels came from, for the message.

    Raises:
        ValueError: If only one class occurs.
    """
    if labels.min() == labels.max():
        raise ValueError(
            f"{place}: all {len(labels)} images have label {int(labels[0])}; a classifier needs at least two classes"
        )
