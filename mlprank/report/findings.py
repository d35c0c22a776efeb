"""What was found, in sentences and a few numbers, on the page and in the terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlprank.experiments.records import CellRecord
from mlprank.experiments.statistics import MIN_TRAININGS, Comparison, finished_cells
from mlprank.report.content import WITHIN, Content, Panel, Point, by_network, content_of_records, subtitles
from mlprank.report.tables import accuracy_tables, count, failed_table, markdown_table, percent, points
from mlprank.utils.charts import display_name

_PLAIN_WIDTH = 120
_SHOWN_FAILURES = 5


class Tile(NamedTuple):
    """One number with its name and a note."""

    value: str
    name: str
    note: str


def title_of(content: Content) -> str:
    """What the report is about."""
    networks = list(by_network(content.panels))
    if not networks:
        others = [*(s.directory.name for s in content.searches), *(s.name for s in content.shrunk)]
        return "Pruning experiment" if content.records or not others else others[0]
    if len(networks) == 1:
        return f"Pruning {networks[0]}"
    datasets = sorted({panel.setting.dataset for panel in content.panels})
    models = sorted({panel.setting.model for panel in content.panels})
    if len(datasets) == 1 and len(models) < 5:
        return f"Pruning {_joined(models)} on {datasets[0]}"
    return f"Pruning {len(networks)} networks on {count(len(datasets), 'data set')}"


def sentences_of(content: Content) -> tuple[str, ...]:
    """What the records show: claims over settings first, then single networks, then grid searches and failures."""
    about = subtitles(claim[0].settings[0] for claim in content.claims)
    finding = [text for claim in content.claims for text in _claim(claim, about[claim[0].settings[0]])]
    # The highest mean near half of the neurons, of the dense network that is best.
    compared = [(panel, *best) for panel in content.panels if (best := best_at_middle(panel)) is not None]
    if compared:
        panel, label, at = max(compared, key=lambda e: (-abs(e[2].amount - 0.5), e[0].dense.top1.mean, e[2].top1.mean))
        finding.append(
            f"With {100 * at.amount:g} % of the neurons pruned, {display_name(label)} ({_how(panel)}) has the highest "
            f"mean accuracy on {panel.setting.network} ({count(at.top1.num, 'training')}): {percent(at.top1.mean)}, "
            f"against {percent(panel.dense.top1.mean)} dense."
        )
    if smallest := smallest_good(content.panels):
        panel, label, at = smallest
        share = percent(at.num_parameters / panel.dense.num_parameters, digits=0)
        finding.append(
            f"The smallest network within {100 * WITHIN:g} point of its dense accuracy has {share} of the parameters: "
            f"{panel.setting.network} by {display_name(label)} ({_how(panel)}) at {100 * at.amount:g} %; "
            f"--write-network {at.keys[0]} writes it."
        )
    for search in content.searches:
        label, score, _ = search.trials[0]
        reached = f"the best run reaches {percent(score)} with {label}" if score is not None else "every run failed"
        finding.append(f"{search.directory.name}: {reached}.")
    for shrunk in content.shrunk:
        unit, digits = (100, 1) if shrunk.percent else (1, 3)
        finding += [
            f"{shrunk.name}: the chosen network has {percent(point.cost / shrunk.dense[0], digits=0)} of the dense "
            f"network's bytes and scores {unit * point.top1:.{digits}f}, against {unit * shrunk.dense[1]:.{digits}f} "
            "dense."
            for point in shrunk.points
            if point.chosen
        ]
    if not finished_cells(content.records) and not content.searches and not content.shrunk:
        finding.append("No cell finished, so there is nothing to compare.")
    if failed := sum(record.status == "failed" for record in content.records):
        finding.append(f"{count(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} not in any number here.")
    return tuple(finding)


def smallest_good(panels: Sequence[Panel]) -> tuple[Panel, str, Point] | None:
    """The network with the fewest parameters, as a share of its dense one, that loses at most `WITHIN`."""

    def rank(entry: tuple[Panel, str, Point]) -> tuple[float, float]:
        panel, _, point = entry
        return point.num_parameters / panel.dense.num_parameters, -point.top1.mean

    every = ((panel, curve.label, point) for panel in panels for curve in panel.curves for point in curve.points)
    good = [entry for entry in every if entry[0].dense.num_parameters and entry[0].is_good(entry[2])]
    return min(good, key=rank, default=None)


def best_at_middle(panel: Panel) -> tuple[str, Point] | None:
    """The highest mean at the amount nearest a half, of several measures that have enough trainings."""
    amounts = [amount for amount in panel.amounts if amount > 0.0]
    middle = min(amounts, key=lambda amount: (abs(amount - 0.5), amount), default=0.0)
    found = [(curve.label, point) for curve in panel.curves if middle and (point := curve.at(middle)) is not None]
    if len(found) < 2 or min(point.top1.num for _, point in found) < MIN_TRAININGS:
        return None
    return max(found, key=lambda entry: (entry[1].top1.mean, entry[0]))


def tiles_of(content: Content) -> tuple[Tile, ...]:
    """The numbers on top of the page."""
    if not content.records:
        return ()
    done = finished_cells(content.records)
    failed = sum(record.status == "failed" for record in content.records)
    trained = {record.parameters.checkpoint_sha256 for record in done}
    note = count(len(trained), "trained network") + (f", {failed} failed" if failed else "")
    tiles = [Tile(f"{len(done)}", "cells finished", note)]
    if content.claims:
        claim = content.claims[0][0]
        lead, pairs = claim.retention, claim.wins + claim.ties + claim.losses
        shown = "" if lead.low is None or lead.high is None else f", {points(lead.low)} to {points(lead.high)}"
        about = subtitles(other[0].settings[0] for other in content.claims)[claim.settings[0]]
        over = display_name(claim.baseline) if claim.baseline else "the average of the others"
        note = f"points of retention{shown}" + (f"; {about}" if about else "")
        tiles.append(Tile(points(lead.mean), f"against {over}", note))
        tiles.append(Tile(percent(claim.wins / pairs, digits=0), "paired wins", f"{claim.wins} of {pairs} comparisons"))
    if found := smallest_good(content.panels):
        panel, label, point = found
        times = panel.dense.num_parameters / point.num_parameters
        lost = points(point.top1.mean - panel.dense.top1.mean)
        tiles.append(Tile(f"{times:.1f} ×", "fewer parameters", f"{display_name(label)}, {lost} points top-1"))
    return tuple(tiles)


def _claim(claim: Sequence[Comparison], about: str) -> list[str]:
    """One group of settings: the lead on average and over what it is averaged, then who is beaten and who is not."""
    first, each = claim[0], [c for c in claim if c.baseline]
    lead, names = first.retention, [display_name(c.baseline) for c in each]
    others = f"the average of {_joined(names)}" if len(each) > 1 else names[0]
    amount = f"{abs(100 * lead.mean):.1f} points {'more' if lead.mean >= 0 else 'less'} of the dense accuracy than"
    amount = "as much of the dense accuracy as" if abs(lead.mean) < 0.0005 else amount
    text = f"{display_name(first.reference)} keeps {amount} {others}"
    if lead.low is not None and lead.high is not None:
        text += f" (95 % interval {points(lead.low, digits=1)} to {points(lead.high, digits=1)})"
    if first.verdict == "undecided":
        text += ", which is no clear difference"
    elif not first.verdict:
        text += f", too few trainings for a verdict ({MIN_TRAININGS} of every network are needed)"
    parts = []
    for verdict, words in (("better", "ahead of"), ("worse", "behind"), ("undecided", "not clearly different from")):
        found = [f"{display_name(c.baseline)} ({points(c.accuracy.mean)})" for c in each if c.verdict == verdict]
        parts += [f"{words} {_joined(found)}"] if found and len(each) > 1 else []
    pairs = first.wins + first.ties + first.losses
    beaten = f"in points of top-1 accuracy it is {', '.join(parts)}; it" if parts else "it"
    beaten += f" wins {first.wins} of {count(pairs, 'paired comparison')} and loses {first.losses}."
    start = f"With {about}: " if about else ""
    beaten = f"{start}{beaten}" if about else f"{beaten[:1].upper()}{beaten[1:]}"
    return [f"{start}{text}; {averaged_over(first)}.", beaten]


def averaged_over(claim: Comparison) -> str:
    """Over what a claim averages: `averaged with equal weight over 2 networks, 2 methods and all amounts`."""
    if len(claim.settings) == 1:
        (setting,) = claim.settings
        over = f"for {setting.network}, {setting.method} method, averaged over all amounts"
    else:
        networks, methods = {s.network for s in claim.settings}, {s.method for s in claim.settings}
        parts = [count(len(networks), "network"), count(len(methods), "method"), "all amounts"]
        over = f"averaged with equal weight over {_joined(parts)}"
    return f"{over} ({count(claim.accuracy.num, 'training')})"


def _how(panel: Panel) -> str:
    return f"{panel.setting.method}, {panel.setting.compensation.replace('_', ' ')} compensation"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def print_findings(records: Sequence[CellRecord], directory: Path) -> None:
    """Print the tables and findings of an experiment, whose results are in `directory`, to the standard output."""
    from rich.console import Console
    from rich.markdown import Markdown

    content = content_of_records(records, {record.key: directory for record in records})
    live = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if live else _PLAIN_WIDTH, no_color=not live or None)
    for table in accuracy_tables(content):
        console.print(f"\n{table.title}", Markdown(markdown_table(table)), sep="\n")
    console.print("", *sentences_of(content), sep="\n")
    failed = failed_table(content).rows
    for what, error in failed[:_SHOWN_FAILURES]:
        console.print(f"failed: {what.text}: {error.text}")
    if len(failed) > _SHOWN_FAILURES:
        console.print(f"and {len(failed) - _SHOWN_FAILURES} more failed; {directory / 'records.jsonl'} holds them all")
