"""Predictions as a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mlprank.utils.files import whole_file


def write_predictions(outputs: Sequence[Tensor], path: Path) -> int:
    """Write a row per image: its index, the most probable class and that class's probability.

    Args:
        outputs: Class probabilities by batch, shape (N, num_classes).
        path: The CSV file.

    Returns:
        The number of images.
    """
    probabilities, classes = torch.cat(list(outputs)).max(dim=1)
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "class", "probability"))
        rows = zip(classes.tolist(), probabilities.tolist(), strict=True)
        writer.writerows((index, label, f"{value:.6f}") for index, (label, value) in enumerate(rows))
    return len(classes)
