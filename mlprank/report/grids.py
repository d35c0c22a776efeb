"""A grid search as a table of scores: what `mlprank tune` leaves for the report in `heat_map.json`."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments.store import write_whole

GRID_NAME = "heat_map.json"
GRID_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One heat map. `values` are accuracies in [0, 1], rows by columns; None is a run that failed or diverged."""

    title: str
    row_title: str
    col_title: str
    row_labels: tuple[str, ...]
    col_labels: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.row_labels) or any(len(row) != len(self.col_labels) for row in self.values):
            raise ValueError(
                f"grid {self.title!r}: values must have {len(self.row_labels)} rows of {len(self.col_labels)} numbers, "
                f"one a label, got rows of {[len(row) for row in self.values]}"
            )

    @property
    def best(self) -> tuple[int, int] | None:
        """Row and column of the largest value; None where every run failed."""
        places = [
            (value, -i, -j)
            for i, row in enumerate(self.values)
            for j, value in enumerate(row)
            if value is not None and math.isfinite(value)
        ]
        _, i, j = max(places, default=(0.0, 1, 1))
        return None if i > 0 else (-i, -j)


def is_tune_directory(directory: Path) -> bool:
    """Whether a grid search wrote its heat map here."""
    return (directory / GRID_NAME).is_file()


def write_grid(directory: str | Path, grid: Grid) -> Path:
    """Write the heat map of a grid search, whole or not at all; NaN is written as null."""
    plain = dataclasses.asdict(grid)
    plain["values"] = [[v if v is not None and math.isfinite(v) else None for v in row] for row in grid.values]
    path = Path(directory) / GRID_NAME
    text = json.dumps({"schema_version": GRID_SCHEMA_VERSION, **plain}, indent=1) + "\n"
    write_whole(path, text.encode())
    return path


def read_grid(directory: str | Path) -> Grid:
    """Read the heat map of a grid search.

    Raises:
        ValueError: If the file is damaged or another version wrote it.
    """
    path = Path(directory) / GRID_NAME
    try:
        plain = json.loads(path.read_text("utf-8"))
        version = plain.pop("schema_version")
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a heat map of a grid search ({error!r}); run `mlprank tune` again") from error
    if version != GRID_SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {version!r}, but this mlprank reads version {GRID_SCHEMA_VERSION}; "
            "use the mlprank that wrote it"
        )
    try:
        rows = tuple(tuple(row) for row in plain.pop("values"))
        plain["row_labels"], plain["col_labels"] = tuple(plain["row_labels"]), tuple(plain["col_labels"])
        return Grid(**plain, values=rows)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a heat map of a grid search ({error}); run `mlprank tune` again") from error
