import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mlprank.artifact.spec import resolve_class
from mlprank.models import MLP, MODELS, TwoLayerMLP, build_model, describe_model


@pytest.mark.parametrize("model", [MLP(6, [4], 3, batch_norm=True, activation="tanh"), TwoLayerMLP(8, 3)])
def test_a_network_is_rebuilt_from_its_description_alone(model: nn.Module, tmp_path: Path) -> None:
    torch.save(describe_model(model), tmp_path / "spec.pt")
    again = build_model(torch.load(tmp_path / "spec.pt", weights_only=True))
    again.load_state_dict(model.state_dict())
    x = torch.randn(4, int(model.in_features))  # type: ignore[arg-type]
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


def test_every_registered_network_is_described_by_its_public_path() -> None:
    with torch.device("meta"):
        for name, cls in MODELS.items():
            model = MLP(2, [3], 2) if cls is MLP else cls()
            description = describe_model(model)
            assert description is not None
            assert description["class_path"] == f"mlprank.models.{name}"


def test_a_network_that_records_nothing_has_no_description() -> None:
    assert describe_model(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("os.system", r"'os.system' is not a subclass of torch.nn.modules.module.Module"),
        ("torch.optim.Adam", r"'torch.optim.Adam' is not a subclass"),
        ("not_there.Net", r"'not_there.Net' is not imported; import not_there"),
        ("mlprank.models.Net", r"'mlprank.models.Net' is not imported"),
        ("mlprank.nothing.Net", r"no module mlprank.nothing"),
        ("Net", r"class_path='Net' must be an import path"),
        (7, r"class_path=7 must be an import path"),
    ],
)
def test_only_imported_modules_of_the_right_kind_are_resolved(class_path: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_class(class_path, nn.Module)


def test_resolving_never_imports_a_foreign_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"stranger.Net' is not imported"):
        build_model({"class_path": "stranger.Net", "init_args": {}})
    assert "stranger" not in sys.modules


def test_arguments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"mlprank.models.MLP cannot be built .*unexpected keyword argument 'width'"):
        build_model(
            {
                "class_path": "mlprank.models.MLP",
                "init_args": {"in_features": 2, "widths": [2], "num_classes": 2, "width": 3},
            }
        )
    with pytest.raises(ValueError, match=r"holds class_path and init_args, but this one holds \['name'\]"):
        build_model({"name": "MLP"})
