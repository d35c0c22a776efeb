"""The README's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["narrow"].fc1.out_features == 64
    assert (tmp_path / "pruned.ckpt").is_file()
    assert "parameters" in capsys.readouterr().out


def test_the_readme_is_short_and_has_three_pictures_and_the_table_of_the_peers():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"<img src=\"docs/[\w./-]+\.png\" width=\"\d+\" alt=\"[^\"]+\">", text)) == 3
    assert "| Torch-Pruning |" in text
    assert "| ModelOpt |" in text


def test_every_file_that_the_readme_names_is_there():
    linked = re.findall(r"""(?:\]\(|src=")([\w./-]+)["#)]""", README.read_text())
    configs = re.findall(r"configs/[\w/]+\.yaml", README.read_text())
    missing = [name for name in (*linked, *configs) if not (README.parent / name).exists()]
    assert not missing
