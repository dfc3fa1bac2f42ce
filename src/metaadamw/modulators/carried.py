"""Beyond the paper: factors that were learned on some tasks, to start with on others."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["TABLES", "carried_factors"]

TABLES = Path(__file__).with_name("carried.json")
"""Written by ``python -m benchmarks.carried_factors``."""


def carried_factors(*, without: str | None = None) -> dict[str, float]:
    """α at birth by name of a group, as ``fine_grained_groups`` names them.

    Half of the way, on the log scale, to where groups of the same kind ended on five tasks in
    windows, relative to the other groups of their model: embeddings higher, biases of linear and
    attention layers lower, final norms and heads higher where their names have no number. What is
    not in it starts at 1.

    Args:
        without: a task of the paper that shall have no part in it.

    Returns:
        For ``Factors(alpha_start=...)``.

    Raises:
        ValueError: ``without`` is none of the five tasks.

    Example:
        >>> factors = carried_factors()
        >>> factors["attention.deep.bias"] < 1 < factors["embedding.middle.weight"]
        True

    Source: ``lab/notebook.md``, experiment 22, says what this is worth.
    """
    tables = json.loads(TABLES.read_text(encoding="utf-8"))
    if without is None:
        found: dict[str, float] = tables["all"]
    elif without in tables["without"]:
        found = tables["without"][without]
    else:
        raise ValueError(f"without must be one of {sorted(tables['without'])}, got {without!r}")
    return found
