"""Choices by literals: a name, a dict of plain values, or the object that they stand for."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from metaadamw.checks import check_choice, nearest

__all__ = ["Options", "choose"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen of one kind of modulator or learning; says which options there are."""

    def __new__(cls, *positional: Any, **options: Any) -> Options:
        """Refuse an unknown option with the nearest of those there are.

        Raises:
            TypeError: an option that this kind does not have.
        """
        allowed = [field.name for field in fields(cls)]
        for name in options:
            if name not in allowed:
                raise TypeError(
                    f"{cls.__name__} has no option {name!r}; it has "
                    f"{', '.join(allowed) or 'none'}{nearest(name, allowed)}"
                )
        return super().__new__(cls)


def choose(name: str, value: Any, kinds: Mapping[str, Callable[..., T]], base: type) -> T:
    """What a name, a dict with the key "kind", or an object of ``base`` stands for.

    Args:
        name: of the argument.
        value: what was given; a string may also be a dict in Python's own writing, as a launcher
            passes it on.
        kinds: what each name makes of keywords.
        base: the type of everything that can be made.

    Raises:
        ValueError: an unknown name, with the nearest of those there are.
        TypeError: anything else, an unknown keyword.

    Example:
        >>> choose("size", {"kind": "pair", "real": 1}, {"pair": complex}, complex)
        (1+0j)
    """
    if isinstance(value, base):
        return cast(T, value)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{name} must be a dict of plain values, got {value!r}") from error
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be one of {sorted(kinds)}, a dict with one of them as 'kind', or an "
            f"object of {base.__name__}, got {value!r}"
        )
    keywords = dict(value)
    if "kind" not in keywords:
        raise ValueError(
            f"{name} must have the key 'kind', one of {sorted(kinds)}, got {value!r}"
            f"{''.join(nearest(key, ['kind']) for key in keywords)}"
        )
    kind = keywords.pop("kind")
    check_choice(f"{name}['kind']" if keywords else name, kind, kinds)
    return kinds[kind](**keywords)
