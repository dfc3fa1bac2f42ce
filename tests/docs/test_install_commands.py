"""Nothing is published: every install command that is named works in a clone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PLACES = [
    ROOT / "README.md",
    *(
        path
        for place, pattern in (
            ("src", "*.py"),
            ("bench/src", "*.py"),
            ("docs", "*.md"),
            ("examples", "*.py"),
        )
        for path in sorted((ROOT / place).rglob(pattern))
    ),
]
NAMING = [path for path in PLACES if "pip install" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", NAMING, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_an_install_command_names_the_clone_and_extras_that_there_are(path):
    extras = {
        place: tomllib.loads((ROOT / place / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        for place in (".", "./bench")
    }
    for command in re.findall(r"pip install [^\n]*", path.read_text(encoding="utf-8")):
        assert not re.search(r"metaadamw\[|pip install metaadamw", command)
        for place, named in re.findall(r"'(\.|\./bench)\[([^\]]*)\]'", command):
            assert named == "{extra}" or named in extras[place]


def test_the_messages_are_found():
    names = {path.name for path in NAMING}
    assert {"cli.py", "arm.py", "launch.py", "recorder.py", "bench.md", "lightning.md"} <= names
