"""How a measure looks: the same colour, marker, dash and name in every plot, telling apart without colour too.

Source:
    Okabe and Ito 2008, Color Universal Design; grey stands for `random`, lighter tints of the same hues on dark ground.
"""

from collections.abc import Iterable
from dataclasses import dataclass

NAMES = {
    "weighted_pagerank": "Weighted PageRank",
    "modified_pagerank": "Modified PageRank",
    "reconstruction": "Reconstruction",
    "wanda": "Wanda",
    "norm": "Norm",
    "activation": "Activation",
    "random": "Random",
}


@dataclass(frozen=True)
class Style:
    """Look of one curve. `light` and `dark` are colours on the two grounds, `marker` is matplotlib's letter."""

    label: str
    name: str
    index: int
    light: str
    dark: str
    marker: str
    dash: tuple[int, ...]
    width: float


_LOOKS: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
    ("#0072B2", "#4AA3EA", "o", ()),
    ("#D55E00", "#F58A4B", "D", ()),
    ("#56B4E9", "#A9DCFB", "s", (7, 3)),
    ("#CC79A7", "#E7A3CB", "v", (2, 3)),
    ("#E69F00", "#F4BC45", "^", (9, 3, 2, 3)),
    ("#009E73", "#37CBA0", "P", (5, 2)),
    ("#6E7781", "#98A2AE", "X", (1, 3)),
    ("#9A8700", "#F0E442", "p", (12, 3)),
    ("#5B3A8C", "#B79BEA", "h", (3, 2, 1, 2)),
)
_FIXED = {
    "weighted_pagerank": 0,
    "reconstruction": 1,
    "modified_pagerank": 2,
    "wanda": 3,
    "norm": 4,
    "activation": 5,
    "random": 6,
}


def display_name(label: str) -> str:
    """What a person reads for a series label: `norm(p=2)` becomes `Norm (p=2)`."""
    measure, bracket, arguments = label.partition("(")
    return NAMES.get(measure, measure) + (f" ({arguments}" if bracket else "")


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """One look a label, in the order of the legend; known measures always look the same.

    Args:
        labels: Series labels; more than nine share colours, with another dash.
    """
    ordered = sorted(set(labels), key=lambda label: (_FIXED.get(label.partition("(")[0], 99), len(label), label))
    taken: set[int] = set()
    chosen: dict[str, int] = {}
    for label in ordered:
        place = _FIXED.get(label)
        if place is not None:
            chosen[label] = place
            taken.add(place)
    spare = [place for place in range(len(_LOOKS)) if place not in taken]
    for number, label in enumerate(label for label in ordered if label not in chosen):
        place = spare[number] if number < len(spare) else len(_LOOKS) + number - len(spare)
        measure = _FIXED.get(label.partition("(")[0])
        chosen[label] = measure if measure in spare and measure not in chosen.values() else place
    return {label: _style(label, chosen[label]) for label in ordered}


def _style(label: str, index: int) -> Style:
    light, dark, marker, dash = _LOOKS[index % len(_LOOKS)]
    around = index // len(_LOOKS)
    return Style(
        label=label,
        name=display_name(label),
        index=index,
        light=light,
        dark=dark,
        marker=marker,
        dash=(*dash, 3 + around, 2 * around) if around else dash,
        width=3.0 if label == "weighted_pagerank" else 2.0,
    )
