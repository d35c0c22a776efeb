"""The report as a browser and a picture viewer see it."""

import re
import shutil
import subprocess

import pytest

from mlprank.report import write_report
from mlprank.report.grids import Grid, write_grid
from tests.experiments.synthetic import write_experiment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=2000",
    "--window-size=1400,1200",
]
PLAY = """<script>
(() => {
  const result = {};
  const chart = document.querySelector("svg.lines");
  chart.scrollIntoView();
  const box = chart.getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.6, clientY: box.top + box.height / 2, bubbles: true };
  chart.dispatchEvent(new PointerEvent("pointermove", at));
  const tip = document.getElementById("tip");
  result.tip = tip.classList.contains("on") ? tip.textContent : "";
  const chip = document.querySelector('.chip[data-series="norm"]');
  chip.click();
  chart.dispatchEvent(new PointerEvent("pointermove", at));
  result.without = tip.textContent;
  result.gone = Array.from(document.querySelectorAll('.series[data-series="norm"]'))
    .every((element) => getComputedStyle(element).display === "none");
  chip.click();
  const filter = document.querySelector('select[data-filter="method"]');
  filter.value = "local";
  filter.dispatchEvent(new Event("change"));
  result.shown = Array.from(document.querySelectorAll("#accuracy figure")).filter((card) => !card.hidden).length;
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click();
  result.themed = getComputedStyle(document.body).backgroundColor !== before;
  document.querySelector(".heat .point").dispatchEvent(new PointerEvent("pointerover", at));
  result.cell = tip.textContent;
  document.body.setAttribute("data-played", JSON.stringify(result));
})();
</script>"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    write_experiment(directory / "experiment", amounts=(0.3, 0.5, 0.8), seeds=(0, 1))
    (directory / "tune").mkdir()
    grid = Grid(
        title="Synthetic grid",
        row_title="lr",
        col_title="weight decay",
        row_labels=("0.1", "0.01"),
        col_labels=("0", "1e-5"),
        values=((0.5, None), (0.9, 0.8)),
    )
    write_grid(directory / "tune", grid)
    return write_report([directory / "experiment", directory / "tune"], directory / "out")


def dom(page, profile):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_finds_the_plots_and_no_script_errors(written, tmp_path):
    found = dom(written.html, tmp_path)
    assert 'data-ready="yes"' in found, "the script ran to its end"
    assert "data-script-error" not in found.partition("<script>")[0]
    assert len(re.findall(r'<svg class="chart lines"', found)) == 4
    assert len(re.findall(r'<svg class="chart"', found)) == 4
    assert len(re.findall(r'<svg class="ridges"', found)) == 14
    assert found.count('class="heat"') >= 5
    assert re.search(r'<html lang="en" data-theme="(light|dark)">', found)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_tooltips_legend_filters_and_theme_work(written, tmp_path):
    page = tmp_path / "played.html"
    page.write_text(written.html.read_text().replace("</body>", PLAY + "</body>"))
    found = dom(page, tmp_path / "profile")
    assert "data-script-error" not in found.partition("<script>")[0]
    played = re.search(r'data-played="([^"]*)"', found).group(1).replace("&quot;", '"')
    assert '"tip":"50 % taken out' in played
    assert "Norm" in played.partition('"without"')[0]
    assert "Norm" not in played.partition('"without"')[2].partition('"gone"')[0]
    assert '"gone":true,"shown":2,"themed":true' in played
    assert re.search(r'"cell":"fc1\d+\.\d % of its neurons taken out30 % requested"', played)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_script_error_would_be_seen(written, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(written.html.read_text().replace("</body>", "<script>nothing.here()</script></body>"))
    assert 'data-script-error="Uncaught ReferenceError' in dom(page, tmp_path / "profile")


def test_every_picture_is_a_whole_png_and_is_named_in_the_markdown(written):
    kinds = {path.name.partition("_")[0] for path in written.pictures}
    assert kinds == {"accuracy", "latency", "size", "lost", "centralities", "tuning"}
    text = written.markdown.read_text()
    for path in written.pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert data[-8:-4] == b"IEND"
        assert f"({path.name})" in text
