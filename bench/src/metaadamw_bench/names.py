"""The names that a user types, and what is said of one that is none of them.

Help, completion and mistakes need the names alone. They stand here, apart from what they name, so
that none of these has to wait for torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

__all__ = ["ARMS", "DATA_SETS", "DEMO_TASKS", "TASKS", "nearest", "suggestion", "unknown"]

TASKS = ("etth1", "wikitext2", "multi30k", "cifar10", "imdb", "digits", "pydoc", "photos")
"""The tasks, in the order in which they are shown; each is a file of ``tasks/``."""

DEMO_TASKS = ("digits", "pydoc")
"""The tasks of ``metaadamw demo``, whose data travel inside installed packages."""

DATA_SETS = ("etth1", "wikitext2", "multi30k", "cifar10", "imdb")
"""The data sets; each is a file of ``data/``."""

ARMS = (
    "adamw",
    "adamw-tuned",
    "adamw-cosine",
    "adamw-tuned-cosine",
    "adamw-inverse-time",
    "adamw-matched",
    "adamw-matched-paper",
    "adamw-matched-windows",
    "metaadamw",
    "metaadamw-online",
    "metaadamw-two-horizons",
    "metaadamw-two-horizons-cosine",
    "metaadamw-factors",
    "metaadamw-slow-mean",
    "metaadamw-slow-mean-attention",
    "metaadamw-carried",
    "metaadamw-carried-frozen",
    "metaadamw-scalars",
    "metaadamw-window",
    "metaadamw-redistribution",
    "metaadamw-redistribution-cosine",
    "metaadamw-loss-decrease",
    "metaadamw-loss-decrease-1",
    "metaadamw-loss-decrease-100",
    "metaadamw-loss-decrease-500",
    "metaadamw-loss-decrease-training",
    "metaadamw-loss-decrease-attention",
    "metaadamw-gradient-alignment",
    "metaadamw-combined",
    "replay-schedule",
    "replay-redistribution",
    "replay-two-horizons-schedule",
    "replay-two-horizons-redistribution",
    "replay-two-horizons-decay",
    "metaadamw-paper",
    "metaadamw-as-run",
    "metaadamw-random",
    "schedulefree",
    "prodigy",
    "nadam",
    "muon",
)
"""The arms that ``arms.py`` defines, in its order."""

# Shorter pieces are part of too many names.
_PIECE = 3


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that a wrong one was probably meant to be; None if none is like it."""
    by_plain = {_plain(other): other for other in allowed}
    word = _plain(name)

    def likeness(other: str) -> tuple[float, int]:
        # Of two that are as like it, the one that begins like it: adamw, not nadam, for adam.
        alike = SequenceMatcher(None, other, word)
        begins = next(iter(alike.get_matching_blocks()))
        return alike.ratio(), begins.size if begins.a == begins.b == 0 else 0

    close = max(get_close_matches(word, by_plain), key=likeness, default=None)
    if close is None and len(word) >= _PIECE:
        close = min((other for other in by_plain if word in other), key=len, default=None)
    return None if close is None else by_plain[close]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """``; did you mean …?``, to end a message with; empty if no allowed name is like it."""
    found = nearest(name, allowed)
    return "" if found is None else f"; did you mean {found!r}?"


def unknown(name: str, allowed: Iterable[str]) -> str:
    """What to say of a name that is not allowed."""
    allowed = list(allowed)
    return f"{name!r} is not one of {', '.join(allowed)}{suggestion(name, allowed)}"
