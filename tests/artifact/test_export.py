"""The laws of mlprank.artifact.export: a file is checked, whole, and free of its batch size."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.nn.utils import prune

from mlprank.artifact import export
from mlprank.artifact.export import export_model, onnx_function
from mlprank.graph.program import Inputs
from mlprank.utils.files import whole_file

ONNX = pytest.mark.slow  # the exporter takes seconds to import


def small_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[2].running_mean.normal_()
    return model


def images(num: int = 4) -> Tensor:
    return torch.randn(num, 1, 3, 4, generator=torch.Generator().manual_seed(0))


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(4, 12))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def reload(path: Path, form: str):
    return onnx_function(path) if form == "onnx" else torch.export.load(path).module()


@pytest.mark.parametrize("num_images", [1, 4])
@pytest.mark.parametrize("form", ["pt2", pytest.param("onnx", marks=ONNX)])
def test_exported_files_take_any_batch_size_and_compute_what_the_model_does(
    tmp_path: Path, form: str, num_images: int
) -> None:
    model = small_mlp()
    result = export_model(model, images(num_images), tmp_path / "deep" / f"m.{form}", form)
    run = reload(result.path, form)
    model.eval()
    for num in (1, 2, 9):
        torch.testing.assert_close(run(images(num)), model(images(num)), atol=1e-4, rtol=0)
    assert result.num_bytes == result.path.stat().st_size
    assert 0 <= result.max_difference <= 1e-4
    assert [p.name for p in result.path.parent.iterdir()] == [result.path.name]


@ONNX
def test_the_onnx_file_names_its_batch_axis(tmp_path: Path) -> None:
    import onnx

    export_model(small_mlp(), images(), tmp_path / "m.onnx", "onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["batch", 1, 3, 4], "logits": ["batch", 3]}


def test_a_masked_model_is_exported_with_its_zeros(tmp_path: Path) -> None:
    model = small_mlp()
    prune.ln_structured(model[1], "weight", amount=0.5, n=1, dim=0)
    export_model(model, images(), tmp_path / "m.pt2", "pt2")
    export_model(model, images(), tmp_path / "m.safetensors", "safetensors")
    model.eval()
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(images()), model(images()))
    weights = load_file(tmp_path / "m.safetensors")
    assert torch.equal(weights["1.weight"], model[1].weight)
    assert int((weights["1.weight"] == 0).all(1).sum()) == 4


def test_safetensors_hold_the_weights_and_say_how_the_model_is_built(tmp_path: Path) -> None:
    model = small_mlp()
    path = tmp_path / "m.safetensors"
    export_model(model, images(), path, "safetensors", metadata={"amount": 0.5, "kept": {"1": [0, 2]}})
    state = load_file(path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    notes = {name: json.loads(value) for name, value in metadata.items() if name != "format"}
    assert metadata["format"] == "pt"
    assert notes["class"] == "torch.nn.modules.container.Sequential"
    assert notes["modules"]["5"] == "Linear(in_features=8, out_features=3, bias=True)"
    assert (notes["input_shape"], notes["amount"], notes["kept"]) == ([1, 3, 4], 0.5, {"1": [0, 2]})


def test_safetensors_hold_a_tied_weight_once_and_name_the_other(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    export_model(Tied(), torch.zeros(1, 4), path, "safetensors")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["first.weight"]
        assert file.metadata()["second.weight"] == "first.weight"
    again = Tied()
    load_model(again, path)
    assert torch.equal(again.second.weight, load_file(path)["first.weight"])


def test_exporting_leaves_the_model_its_modes_and_the_random_state_alone(tmp_path: Path) -> None:
    model = small_mlp()
    model[2].eval()
    prune.random_unstructured(model[5], "weight", amount=0.5)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    export_model(model, images(), tmp_path / "m.pt2", "pt2")
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "weight_mask" in dict(model[5].named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_unknown_format_is_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format='tflite' is unknown; choose one of onnx, safetensors, pt2"):
        export_model(small_mlp(), images(), tmp_path / "m", "tflite")


@pytest.mark.parametrize("form", ["onnx", "safetensors", "pt2"])
def test_a_call_that_lacks_an_input_is_an_error_that_shows_it_and_leaves_no_file(tmp_path: Path, form: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"TwoInputs cannot take inputs \(float32 .*right.*give an example as"):
        export_model(TwoInputs(), images(), tmp_path / "m", form)
    assert not list(tmp_path.iterdir())


class Words(nn.Module):
    """Integer inputs, a mask by keyword, and two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        hidden = (self.embedding(ids) * mask[..., None]).sum(1)
        return {"hidden": hidden, "logits": self.head(hidden)}


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def calls() -> dict[str, tuple[nn.Module, object]]:
    ids = torch.arange(20).view(4, 5) % 11
    return {
        "two": (TwoInputs(), (torch.randn(4, 6), torch.randn(4, 6))),
        "named": (TwoInputs(), {"left": torch.randn(4, 6), "right": torch.randn(4, 6)}),
        "words": (Words(), Inputs((ids,), {"mask": (ids > 2).float()})),
        "cnn": (Cnn(), torch.randn(2, 3, 9, 9)),
    }


@pytest.mark.parametrize("name", ["two", "named", "words", "cnn"])
@pytest.mark.parametrize("form", ["pt2", "safetensors", pytest.param("onnx", marks=ONNX)])
def test_models_of_several_named_and_integer_inputs_and_of_convolutions_are_exported_and_checked(
    tmp_path: Path, form: str, name: str
) -> None:
    torch.manual_seed(0)
    model, example = calls()[name]
    if form == "safetensors" and not model.state_dict():
        pytest.skip("has no weights")
    result = export_model(model, example, tmp_path / f"m.{form}", form)
    assert 0 <= result.max_difference <= 1e-4
    if form != "safetensors":
        inputs = export.inputs_of(example)
        batch = inputs[[*range(len(inputs)), *range(len(inputs)), 0]]
        expected, found = batch.outputs(model.eval()), batch.outputs(reload(result.path, form))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@ONNX
def test_onnx_files_say_what_their_inputs_look_like_and_mean(tmp_path: Path) -> None:
    import onnx

    export_model(
        small_mlp(), images(), tmp_path / "m.onnx", "onnx", metadata={"mean": [0.5], "classes": ["a", "b", "c"]}
    )
    found = {prop.key: json.loads(prop.value) for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
    (described,) = found["mlprank.inputs"]
    assert (described["shape"], described["dtype"]) == ([4, 1, 3, 4], "float32")
    assert described["min"] == pytest.approx(float(images().min()))
    assert (found["mlprank.mean"], found["mlprank.classes"]) == ([0.5], ["a", "b", "c"])


@pytest.mark.parametrize("form", ["pt2", pytest.param("onnx", marks=ONNX)])
def test_a_model_with_its_preprocessing_takes_pixels(tmp_path: Path, form: str) -> None:
    model = small_mlp().eval()
    pixels = torch.randint(0, 256, (4, 1, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"m.{form}"
    export_model(export.Preprocessed(model, mean=[0.3], std=[0.2]), pixels, path, form)
    expected = model((pixels.float() / 255 - 0.3) / 0.2)
    torch.testing.assert_close(reload(path, form)(pixels), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["pt2", "safetensors", pytest.param("onnx", marks=ONNX)])
def test_a_disk_without_room_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    code = """
import resource, sys, torch
from mlprank.artifact.export import export_model
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    export_model(torch.nn.Linear(300, 300), torch.randn(2, 300), *sys.argv[1:])
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.pt2"), form], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is there room for it?" in done.stdout
    assert "m.pt2" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (FixedBatch(), r"FixedBatch does not take batches of any size"),
        (Branching(), r"forward of Branching branches on the values of its input"),
        (nn.Linear(5, 2), r"Linear cannot take inputs \(float32 \(4, 1, 3, 4\)\)"),
    ],
)
def test_a_model_that_cannot_be_traced_is_an_error_and_leaves_no_file(
    tmp_path: Path, model: nn.Module, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        export_model(model, images(), tmp_path / "m.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_model_that_returns_no_tensor_is_an_error(tmp_path: Path) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "nothing"

    with pytest.raises(TypeError, match="Silent returned no tensor"):
        export_model(Silent(), images(), tmp_path / "m.pt2", "pt2")


def test_an_example_without_a_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"example \(float32 \(0, 1, 3, 4\)\) holds no sample"):
        export_model(small_mlp(), images(0), tmp_path / "m.pt2", "pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_onnx_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} is not installed; .* pip install "mlprank\[export\]"'):
        export_model(small_mlp(), images(), tmp_path / "m.onnx", "onnx")


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = export._trace

    def wrong(network: nn.Module, batch: Tensor):
        network[5].bias.data += 1e-3
        program = trace(copy.deepcopy(network), batch)
        network[5].bias.data -= 1e-3
        return program

    (tmp_path / "m.pt2").write_bytes(b"the file of yesterday")
    monkeypatch.setattr(export, "_trace", wrong)
    with pytest.raises(ValueError, match=r"pt2 file differs from the model by 0.001.*nothing was written"):
        export_model(small_mlp(), images(), tmp_path / "m.pt2", "pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the file of yesterday"]


def test_a_broken_off_file_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def break_off() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with whole_file(target) as temporary:
        temporary.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_directory_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a directory; name a file in it"):
        export_model(small_mlp(), images(), tmp_path, "safetensors")
