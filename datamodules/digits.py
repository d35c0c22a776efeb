"""Scikit-learn's bundled digits: 1,797 images of 8 x 8 pixels, nothing to download."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mlprank.datamodules.images import ImageDataModule
from mlprank.datamodules.seeds import generator

TEST_FRACTION = 0.2
_TEST_SEED = 0  # the set has no official test images: these 359 are set apart for every seed of the user's
_LEVELS = 16


class DigitsDataModule(ImageDataModule):
    """Scikit-learn's bundled 8 x 8 digits with pixels in [0, 1]: 1,150 training, 288 validation and 359 test images.

    The default data set: it needs no file and no network. `data_dir` and `download` have nothing to do here.

    Source:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.
    """

    num_classes: ClassVar[int] = 10
    in_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Return the training or the test images.

        Args:
            part: `train` or `test`.

        Returns:
            Images, shape (N, 1, 8, 8), uint8, their 17 grey levels stretched to 256; labels, shape (N,), int64; their
            place.
        """
        import sklearn.datasets  # takes a second to import

        bunch = sklearn.datasets.load_digits()
        images = torch.from_numpy(bunch.images).mul(255 / _LEVELS).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        order = torch.randperm(len(labels), generator=generator(_TEST_SEED, "digits test set"))
        num_test = round(TEST_FRACTION * len(labels))
        rows = order[:num_test] if part == "test" else order[num_test:]
        return images[rows], labels[rows], Path(sklearn.datasets.__file__)
