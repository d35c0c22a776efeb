import dataclasses
import json
import subprocess
import sys

import pytest

from mlprank.experiments.records import (
    CellMetrics,
    CorruptRecordError,
    LayerWidth,
    SchemaVersionError,
    current_versions,
    from_line,
    to_line,
)
from mlprank.grids.store import sealed
from tests.experiments.synthetic import metrics, parameters, record


def edited(change):
    plain = json.loads(to_line(record()))
    change(plain)
    del plain["digest"]
    return json.dumps(sealed(plain))


@pytest.mark.parametrize("written", [record(0.8, measure_args={"p": 2}), record(None, error="boom\nat line 3")])
def test_a_record_is_read_back_as_it_was_written(written):
    line = to_line(written)
    assert line.count("\n") == 1
    assert from_line(line, where="here") == written


def test_a_latency_that_was_not_measured_is_read_back_as_none():
    written = record()
    written = dataclasses.replace(
        written, metrics=dataclasses.replace(metrics(0.8), latency_s_before=None, latency_s_after=None)
    )
    assert from_line(to_line(written), where="here").metrics.latency_s_after is None


def test_the_key_ignores_where_the_checkpoint_lies_and_nothing_else():
    key = parameters().key
    assert parameters(checkpoint="elsewhere/a.ckpt").key == key
    changed = {
        "model": "Other",
        "dataset": "Other",
        "measure": "norm",
        "measure_args": {"p": 2},
        "method": "global",
        "method_args": {"normalise": "none"},
        "amount": 0.3,
        "compensation": "zero",
        "graph": "dag",
        "protect_output": False,
        "calibration_samples": 65,
        "calibration_seed": 1,
        "checkpoint_sha256": "1" * 64,
        "compensation_args": {"ridge": 0.1},
        "recipe_args": {"round_to": 8},
    }
    fields = {field.name for field in dataclasses.fields(parameters())}
    assert fields - changed.keys() == {"checkpoint"}
    keys = {parameters(**{name: value}).key for name, value in changed.items()}
    assert len(keys | {key}) == len(changed) + 1


def test_the_key_ignores_the_order_of_arguments_and_int_for_float():
    assert (
        parameters(measure_args={"gamma": 0.9, "theta": 0.5}).key
        == parameters(measure_args={"theta": 0.5, "gamma": 0.9}).key
    )
    assert parameters(amount=0).key == parameters(amount=0.0).key


@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_an_amount_outside_the_range_is_refused(amount):
    with pytest.raises(ValueError, match=r"amount must be in \[0, 1\)"):
        parameters(amount=amount)


def test_a_percentage_for_a_fraction_is_refused():
    with pytest.raises(ValueError, match=r"top1 must be a fraction in \[0, 1\], got 88; divide"):
        metrics(88)


def test_a_layer_that_keeps_more_than_it_has_is_refused():
    with pytest.raises(ValueError, match=r'layer "fc1": kept must be in \[0, 4\], got 5'):
        LayerWidth(name="fc1", width=4, kept=5)


def test_status_metrics_and_error_must_agree():
    good = record()
    with pytest.raises(ValueError, match=r'status must be "ok" or "failed"'):
        dataclasses.replace(good, status="done")
    with pytest.raises(ValueError, match="metrics if and only if"):
        dataclasses.replace(good, metrics=None)
    with pytest.raises(ValueError, match="needs the text of its error"):
        dataclasses.replace(good, status="failed", metrics=None)


def test_a_number_that_is_not_finite_is_refused():
    broken = dataclasses.replace(record(), timings={"evaluate_s": float("inf")})
    with pytest.raises(ValueError, match="finite numbers only"):
        to_line(broken)


def test_another_schema_version_is_named():
    line = edited(lambda plain: plain.update(schema_version=99))
    with pytest.raises(
        SchemaVersionError, match=r"r\.jsonl line 7: schema version 99, but this mlprank reads version 2"
    ):
        from_line(line, where="r.jsonl line 7")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("schema_version"), "it has no schema_version"),
        (lambda p: p["metrics"].pop("top1"), r"record\.metrics: missing fields \['top1'\]"),
        (lambda p: p["metrics"].update(top9=0.5), r"unknown fields \['top9'\]"),
        (lambda p: p["metrics"].update(top1="high"), r"record\.metrics\.top1: expected float, got 'high'"),
        (lambda p: p["metrics"].update(flops_after=True), r"flops_after: expected int, got True"),
        (lambda p: p["metrics"].update(layers={}), r"layers: expected a list"),
        (lambda p: p.update(parameters=[]), r"record\.parameters: expected an object"),
        (lambda p: p.update(timings=[]), r"record\.timings: expected an object"),
        (lambda p: p["parameters"].update(amount=0.4), "is not that of the parameters"),
    ],
)
def test_a_line_with_a_wrong_field_names_the_place(change, said):
    with pytest.raises(CorruptRecordError, match=said):
        from_line(edited(change), where="r.jsonl line 1")


def test_half_a_line_is_no_record():
    line = to_line(record())
    with pytest.raises(CorruptRecordError, match=r"line 3: not a whole record"):
        from_line(line[: len(line) // 2], where="r.jsonl line 3")


def test_retention_is_the_share_of_the_dense_accuracy():
    assert metrics(0.44, dense=0.88).retention == pytest.approx(0.5)
    assert metrics(0.0, dense=0.0).retention == 0.0
    assert isinstance(metrics(0.5), CellMetrics)


def test_versions_come_from_what_is_installed():
    assert current_versions().torch.startswith("2.")


def test_records_statistics_and_report_import_neither_torch_nor_lightning_nor_altair():
    code = (
        "import sys, mlprank.experiments.records, mlprank.experiments.store, mlprank.experiments.statistics,"
        "mlprank.report, mlprank.cli.report;"
        "print(sorted({'torch', 'lightning', 'altair', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_line_whose_numbers_were_changed_is_told_by_its_digest():
    line = to_line(record(0.8)).replace('"top1":0.8', '"top1":0.9')
    with pytest.raises(CorruptRecordError, match=r"line 2: its digest is not that of its content"):
        from_line(line, where="r.jsonl line 2")


def test_a_record_of_version_0_1_0_is_read_under_the_key_that_it_had():
    plain = json.loads(to_line(record(0.8)))
    for name in ("compensation_args", "recipe_args"):
        del plain["parameters"][name]
    del plain["digest"]
    assert from_line(json.dumps(plain | {"schema_version": 1}), where="here") == record(0.8)
