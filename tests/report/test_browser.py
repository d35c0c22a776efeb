"""The report as a browser and a picture viewer see it."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from mlprank.report import PICTURE_KINDS, write_report
from tests.experiments.synthetic import write_experiment
from tests.report.test_content import FRONT, point, write_trials

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=60000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
PLAY = """<script type="module">
while (document.body.dataset.ready !== "yes") await new Promise((resolve) => setTimeout(resolve, 50));
const result = {};
const settled = () => new Promise((resolve) => setTimeout(resolve, 300));
const charts = Array.from(document.querySelectorAll("#accuracy .chart"));
const plot = charts[0].querySelector("svg");
plot.scrollIntoView({ block: "center", behavior: "instant" });
await settled();
const box = plot.getBoundingClientRect();
const at = { clientX: box.left + box.width * 0.5, clientY: box.top + box.height * 0.3, bubbles: true, view: window };
const target = document.elementFromPoint(at.clientX, at.clientY);
for (const kind of ["pointerover", "pointermove", "mousemove"]) target.dispatchEvent(new PointerEvent(kind, at));
await settled();
result.tip = document.querySelector("#vg-tooltip-element")?.innerText ?? "";
const faint = (chart) => chart.querySelectorAll('path[aria-roledescription="line mark"][opacity="0.08"]').length;
result.before = charts.map(faint);
const labels = Array.from(charts[0].querySelectorAll(".role-legend-label text"));
const label = labels.find((text) => text.textContent === "Norm");
const place = label.getBoundingClientRect();
const on = { clientX: place.left + 4, clientY: place.top + 4, bubbles: true, view: window };
for (const kind of ["pointerdown", "pointerup", "click"]) {
  label.dispatchEvent(kind === "click" ? new MouseEvent(kind, on) : new PointerEvent(kind, on));
}
await settled();
result.after = charts.map(faint);
const filter = document.querySelector('select[data-filter="method"]');
filter.value = "local";
filter.dispatchEvent(new Event("change"));
result.shown = Array.from(document.querySelectorAll("#accuracy figure")).filter((card) => !card.hidden).length;
const ground = () => getComputedStyle(charts[0].querySelector("svg")).backgroundColor;
const [page, chart] = [getComputedStyle(document.body).backgroundColor, ground()];
document.getElementById("theme").click();
await settled();
result.themed = [getComputedStyle(document.body).backgroundColor !== page, ground() !== chart];
const wide = (element) => element.scrollWidth > document.documentElement.clientWidth + 1;
result.overflow = wide(document.body);
document.body.setAttribute("data-played", JSON.stringify(result));
</script>"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    write_experiment(directory / "experiment", amounts=(0.3, 0.5, 0.8), seeds=(0, 1, 2))
    write_trials(directory / "tune", [(point(lr, d), lr / 2) for lr in (0.1, 1.0) for d in (0.0, 0.25)])
    (directory / "shrunk").mkdir()
    (directory / "shrunk" / "frontier.csv").write_text(FRONT)
    results = [directory / "experiment", directory / "tune", directory / "shrunk"]
    return write_report(results, directory / "out", pictures=PICTURE_KINDS)


def with_script(written, path, script):
    """A copy of the page with a script at its end."""
    before, _, after = written.html.read_text().rpartition("</body>")
    path.write_text(f"{before}{script}</body>{after}")
    return path


def dom(page, profile, *, width=1400):
    flags = [*FLAGS, f"--window-size={width},1200", f"--user-data-dir={profile}"]
    command = [CHROMIUM, *flags, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_without_a_network_draws_every_chart_and_finds_no_script_errors(written, tmp_path):
    found = dom(written.html, tmp_path)
    assert 'data-ready="yes"' in found, "the script ran to its end"
    assert "data-script-error" not in found.partition("<header>")[0].partition("<body")[2]
    charts = re.findall(r'<div class="chart[^"]*" id="chart-\d+"', found)
    assert len(charts) == 4 + 1 + 2 + 2 + 14 + 14 + 1 + 1
    assert found.count('class="marks"') == len(charts)
    assert re.search(r'<html lang="en" data-theme="(light|dark)">', found)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1400, 500])
def test_pointer_legend_filters_and_theme_work(written, tmp_path, width):
    found = dom(with_script(written, tmp_path / "played.html", PLAY), tmp_path / "profile", width=width)
    assert "data-script-error" not in found.partition("<header>")[0].partition("<body")[2]
    played = json.loads(unescape(re.search(r'data-played="([^"]*)"', found).group(1)))
    assert re.search(r"Weighted PageRank:?\s*\d\d\.\d\d % \(\d", played["tip"]), played["tip"]
    assert played["before"] == [0, 0, 0, 0]
    assert played["after"] == [6, 6, 6, 6], "a measure that is clicked in one legend is alone in all charts"
    assert played["shown"] == 2
    assert played["themed"] == [True, True]
    assert not played["overflow"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_script_error_would_be_seen(written, tmp_path):
    page = with_script(written, tmp_path / "broken.html", "<script>nothing.here()</script>")
    assert 'data-script-error="Uncaught ReferenceError' in dom(page, tmp_path / "profile")


def test_every_picture_is_a_whole_png_and_is_named_in_the_markdown(written):
    kinds = {path.name.partition("_")[0] for path in written.pictures}
    assert kinds == set(PICTURE_KINDS)
    text = written.markdown.read_text()
    for path in written.pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert data[-8:-4] == b"IEND"
        assert f"({path.name})" in text
