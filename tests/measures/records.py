"""Layer records made of random numbers, with exact zeros, for the tests of the measures."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlprank.measures import LayerRecord, Reader


def make_record(
    num_out: int,
    num_in: int,
    *,
    seed: int = 0,
    zeros: float = 0.2,
    dtype: torch.dtype = torch.float32,
    amount: float = 0.0,
    name: str = "fc1",
) -> LayerRecord:
    """Return a record with a share of exact zeros among the weights and one reader of the neurons."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_out, num_in, generator=generator, dtype=torch.float64)
    weight[torch.rand(num_out, num_in, generator=generator) < zeros] = 0.0
    previous = torch.rand(num_in, generator=generator, dtype=torch.float64) + 1e-3
    norms = dtype if dtype == torch.float64 else torch.float32

    def readers() -> tuple[Reader, ...]:
        drawn = torch.Generator().manual_seed(seed + 1)
        data = torch.randn(3 * num_out + 4, num_out, generator=drawn, dtype=torch.float64).relu()
        return (Reader(torch.randn(3, num_out, generator=drawn, dtype=torch.float64).to(dtype), gram(data)),)

    return LayerRecord(
        name=name,
        weight=weight.to(dtype),
        previous=(previous / previous.sum()).to(norms),
        input_norms=torch.rand(num_in, generator=generator, dtype=torch.float64).to(norms),
        output_norms=torch.rand(num_out, generator=generator, dtype=torch.float64).to(norms),
        amount=amount,
        readers=readers,
    )


def gram(data: Tensor) -> Tensor:
    """Return the centred Gram matrix of samples by neurons."""
    centred = data - data.mean(0)
    return centred.t() @ centred


def array(values: Tensor) -> NDArray[np.float64]:
    """Return the values as float64."""
    return values.detach().to(torch.float64).numpy()


def assert_close(found: Tensor, expected: NDArray[np.float64] | Sequence[float], *, rtol: float = 1e-5) -> None:
    """Assert that scores agree relative to each entry."""
    np.testing.assert_allclose(array(found), expected, rtol=rtol, atol=0.0)
