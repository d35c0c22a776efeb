import dataclasses

import pytest

from mlprank.report.content import content_of
from mlprank.report.grids import Grid, read_grid, write_grid
from mlprank.report.heat_map import heat_map_svg
from mlprank.report.page import page_html

GRID = Grid(
    title="Two layers",
    row_title="lr",
    col_title="weight decay",
    row_labels=("0.1", "0.01"),
    col_labels=("1e-5", "1e-6", "1e-7"),
    values=((0.5, None, 0.7), (0.9, 0.95, 0.94)),
)


def test_a_grid_search_is_read_back_and_drawn(tmp_path):
    write_grid(tmp_path, GRID)
    assert read_grid(tmp_path) == GRID
    assert GRID.best == (1, 1)
    content = content_of([tmp_path])
    page = page_html(content)
    assert 'class="heat"' in page
    assert page.count('class="cell best"') == 1
    assert "the best run reaches 95.0 % with lr 0.01 and weight decay 1e-6" in page


def test_a_grid_search_without_a_good_run_has_no_best(tmp_path):
    write_grid(tmp_path, dataclasses.replace(GRID, values=((None,) * 3, (float("nan"),) * 3)))
    assert read_grid(tmp_path).best is None
    assert "every run failed" in page_html(content_of([tmp_path]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a heat map of a grid search"),
        ("[]", "not a heat map of a grid search"),
        ('{"schema_version": 1, "values": []}', "not a heat map of a grid search"),
        ('{"schema_version": 9}', "schema version 9, but this mlprank reads version 1"),
    ],
)
def test_a_damaged_heat_map_is_named(tmp_path, text, message):
    (tmp_path / "heat_map.json").write_text(text)
    with pytest.raises(ValueError, match=rf"heat_map\.json: {message}"):
        read_grid(tmp_path)


def test_labels_that_do_not_fit_the_values_are_refused():
    with pytest.raises(ValueError, match=r"2 row labels and 1 column labels do not fit values of 1 rows"):
        heat_map_svg([[0.1]], ["a", "b"], ["c"], title="t")
    with pytest.raises(ValueError, match=r"values must have 2 rows of 3 numbers"):
        dataclasses.replace(GRID, values=((0.1,),))
