"""Every example in a docstring of the library runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import metaadamw

MODULES = [
    "metaadamw",
    *(
        module.name
        for module in pkgutil.iter_modules(metaadamw.__path__, "metaadamw.")
        if not module.ispkg
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    torch.manual_seed(0)
    public = {name: getattr(metaadamw, name) for name in metaadamw.__all__}
    failures, _ = doctest.testmod(
        module, extraglobs=public, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0
