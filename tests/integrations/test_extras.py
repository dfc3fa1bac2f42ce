"""A framework that is not installed is named, with the extra that brings it."""

from __future__ import annotations

import importlib
import sys

import pytest

from metaadamw.integrations import require


@pytest.mark.parametrize("extra", ["lightning", "transformers"])
def test_a_missing_framework_is_named(monkeypatch, extra):
    name = f"metaadamw.integrations.{extra}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, extra, None)  # how Python marks what cannot be imported
    message = rf"{extra} is not installed; pip install '\.\[{extra}\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module(name)


def test_what_an_installed_framework_misses_is_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "framework.py").write_text("import what_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'what_is_not_there'"):
        require("framework", extra="framework")


def test_an_installed_framework_passes():
    assert require("torch", extra="torch") is None
