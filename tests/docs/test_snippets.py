"""Every Python block of the README and of docs/ runs: each page on its own, from top to bottom."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(page.read_text(encoding="utf-8"))
]


def run_page(page: Path) -> int:
    """Execute the blocks of a page in one namespace; returns how many there were."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        # Blank lines in front give tracebacks the line numbers of the page.
        padding = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(padding + block[1], str(page), "exec"), namespace)
    return len(blocks)


@pytest.mark.filterwarnings("ignore:this checkpoint has no learned part")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # blocks may write files
    monkeypatch.setenv("MPLBACKEND", "agg")
    torch.manual_seed(0)
    random.seed(0)
    assert run_page(page) > 0
