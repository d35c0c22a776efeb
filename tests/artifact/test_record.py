"""What a record says of the inputs of a network."""

from __future__ import annotations

import torch

from mlprank.artifact.record import describe_inputs


def test_every_tensor_of_a_call_is_described_by_place_shape_dtype_and_range():
    ids, pair = torch.tensor([[3, 7]]), (torch.zeros(1, 2), torch.full((1,), 0.5))
    described = describe_inputs((ids, pair, "no tensor"), {"mask": torch.tensor([[True, False]])})
    assert [(d["place"], d["shape"], d["dtype"], d["min"], d["max"]) for d in described] == [
        ("0", [1, 2], "int64", 3.0, 7.0),
        ("1.0", [1, 2], "float32", 0.0, 0.0),
        ("1.1", [1], "float32", 0.5, 0.5),
        ("mask", [1, 2], "bool", 0.0, 1.0),
    ]
