"""The page on a package index: the README, whose links and pictures lead to the repository there."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Homepage"]


def _absolute(link: re.Match[str]) -> str:
    opening, target = link.groups()
    return f"{opening}{HOME}/{'raw' if target.endswith('.png') else 'blob'}/main/{target}"


setup(
    long_description=re.sub(
        r"""(\]\(|src=")(?!https?:|#)([^)"\s]+)""", _absolute, (ROOT / "README.md").read_text("utf-8")
    ),
    long_description_content_type="text/markdown",
)
