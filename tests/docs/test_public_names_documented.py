"""Public names are on the API page, files on the map, features in their table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import metaadamw
from metaadamw.statistics.features import FEATURE_TABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", sorted(set(metaadamw.__all__) - {"__version__"}))
def test_public_name_is_on_the_api_page(name: str) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^::: metaadamw\.{name}$", page, re.MULTILINE)
    assert getattr(metaadamw, name).__doc__


def feature_rows() -> str:
    """The table of docs/features.md, from the declaration."""
    formulas = {f.name: f.formula for table in FEATURE_TABLES.values() for f in table}
    rows = [f"| | | {' | '.join(f'`{name}`' for name in FEATURE_TABLES)} |"]
    rows.append("|---" * (2 + len(FEATURE_TABLES)) + "|")
    for column, formula in formulas.items():
        cells = []
        for table in FEATURE_TABLES.values():
            found = [(i, f) for i, f in enumerate(table, start=1) if f.name == column]
            cells.append("".join(f"{i}{'°' if f.standardise else ''}" for i, f in found))
        rows.append(f"| `{column}` | {formula} | {' | '.join(cells)} |")
    return "\n".join(rows)


def test_feature_table_is_current() -> None:
    page = (DOCS / "features.md").read_text(encoding="utf-8")
    start, end = "<!-- features -->\n", "\n<!-- /features -->"
    assert page.partition(start)[2].partition(end)[0] == feature_rows()


def test_map_of_the_house_is_complete() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    on_map = set(re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, re.MULTILINE))
    house = Path(metaadamw.__file__).parent
    rooms = {path.stem for path in house.iterdir() if path.suffix == ".py"}
    rooms |= {path.parent.name for path in house.glob("*/__init__.py")}
    assert on_map == rooms
