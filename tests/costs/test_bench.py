"""The laws of mlprank.costs.bench: models take turns on every backend, and what cannot run says why."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from mlprank.costs.bench import Bench, as_json, bench, bench_table, num_steps


def pair() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    pruned = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3))
    return {"dense": dense, "pruned": pruned}


def text(result: Bench) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(bench_table(result))
    return capture.get()


def test_a_bench_counts_and_times_both_models_at_every_batch_size() -> None:
    steps: list[str] = []
    result = bench(pair(), (3, 4), backends=["eager"], batch_sizes=[1, 5], repeats=2, on_step=steps.append)
    assert list(result.timings) == [("eager", 1), ("eager", 5)]
    assert all(timing[name].median_s > 0 for timing in result.timings.values() for name in ("dense", "pruned"))
    assert (result.metrics["dense"].flops, result.metrics["pruned"].flops) == (240, 120)
    assert steps == ["counts", "eager, getting ready", "eager, batch 1", "eager, batch 5"]
    assert len(steps) == num_steps(["eager"], [1, 5])
    assert result.skipped == {}


def test_the_table_shows_every_number_and_the_ratio_to_the_first_model() -> None:
    shown = text(bench(pair(), (12,), backends=["eager"], batch_sizes=[64], repeats=2))
    rows = {
        cells[0]: cells[1:]
        for cells in ([c.strip() for c in line.split("│")[1:-1]] for line in shown.splitlines())
        if cells
    }
    assert rows["parameters"] == ["131", "67", "0.511"]
    assert rows["FLOPs of one image"] == ["240", "120", "0.500"]
    assert "eager, batch 64" in rows
    assert "bytes" in rows


def test_the_numbers_survive_json() -> None:
    result = bench(pair(), (12,), backends=["eager"], batch_sizes=[2], repeats=3)
    plain = json.loads(json.dumps(as_json(result)))
    assert plain["models"]["pruned"]["num_parameters"] == 67
    assert [entry["model"] for entry in plain["latency"]] == ["dense", "pruned"]
    assert plain["latency"][0]["median_s"] == result.timings["eager", 2]["dense"].median_s
    assert plain["latency"][0]["repeats"] == 3


def test_threads_hold_for_the_bench_alone() -> None:
    before = torch.get_num_threads()
    assert (
        bench(pair(), (12,), backends=["eager"], batch_sizes=[1], repeats=1, threads=before + 1).threads == before + 1
    )
    assert torch.get_num_threads() == before


def test_a_missing_onnxruntime_is_skipped_and_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = bench(pair(), (12,), backends=["onnxruntime", "eager"], batch_sizes=[1], repeats=1)
    assert 'pip install "mlprank[export]"' in result.skipped["onnxruntime"]
    assert [backend for backend, _ in result.timings] == ["eager"]
    assert "not run" in text(result)


@pytest.mark.slow
def test_a_missing_compiler_is_skipped_with_its_reason() -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": ("/nonexistent/compiler",), "force_disable_caches": True}):
        result = bench(pair(), (12,), backends=["compiled", "eager"], batch_sizes=[1], repeats=1)
    assert "No working C++ compiler found" in result.skipped["compiled"]
    assert "install one, such as g++" in result.skipped["compiled"]
    assert [backend for backend, _ in result.timings] == ["eager"]


@pytest.mark.slow
def test_all_backends_run_and_leave_the_models_in_training_mode() -> None:
    torch.compiler.reset()
    models = pair()
    result = bench(models, (12,), batch_sizes=[1, 7], repeats=2)
    assert result.skipped == {}
    assert [backend for backend, _ in result.timings] == ["eager"] * 2 + ["compiled"] * 2 + ["onnxruntime"] * 2
    assert all(module.training for model in models.values() for module in model.modules())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backends": ["tensorrt"]}, r"backend='tensorrt' is unknown; choose one of eager, compiled, onnxruntime"),
        ({"batch_sizes": [0]}, r"batch_size=0 must be a whole number of at least 1"),
        ({"threads": 0}, r"threads=0 must be a whole number in \[1, \d+\]"),
        ({"threads": 100_000}, r"threads=100000 must be a whole number in \[1, \d+\]"),
        ({"repeats": 0}, r"repeats=0 must be a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_errors(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bench(pair(), (12,), **options)  # type: ignore[arg-type]


def test_inputs_of_another_shape_are_an_error_that_names_the_model() -> None:
    with pytest.raises(ValueError, match=r"bench: dense: Sequential cannot take inputs of shape \(2, 5\)"):
        bench(pair(), (5,))
    with pytest.raises(ValueError, match="models is empty"):
        bench({}, (5,))


def test_models_in_double_precision_are_measured_in_it() -> None:
    models = {name: model.double() for name, model in pair().items()}
    assert bench(models, (12,), backends=["eager"], batch_sizes=[1], repeats=1).metrics["dense"].flops == 240
