"""Which product of Hessian and vector a model gets, and whether an exact one can be believed.

A backward pass that is no graph (gradients computed in ``forward`` and saved, NumPy, a foreign
kernel) raises nothing when it is differentiated: its part of the product is missing. So the first
product is compared with differences of gradients, and again when the graph has other functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metaadamw.learning.lookahead.graphs import Functions

__all__ = ["STATE_KEYS", "HessianProduct", "SecondDerivative", "compare"]

HessianProduct = Literal["exact", "finite_difference", "forward_difference"]

Differences = Callable[[float], Sequence[Tensor | None]]
"""The central difference of gradients with a step of that length."""


class SecondDerivative:
    """What is known of a model's second derivative.

    Args:
        method: the product asked for.

    Attributes:
        asked: the product asked for.
        method: the product to take; "auto" is exact as long as that is believed.
        reason: why not the exact one, None if nothing stands in its way.
    """

    def __init__(self, method: Literal["auto"] | HessianProduct) -> None:
        self.asked = method
        self._forget()

    def _forget(self) -> None:
        self.method = self.asked
        self.reason: str | None = None
        self._names: set[str] = set()
        self._classes: set[type] = set()  # two may have the same name; they cannot be saved

    def trusts(self, functions: Functions) -> bool:
        """Whether a product through these functions needs no comparison.

        Those of torch have their second derivatives. With kinks among them, products and
        differences may differ and both be right, so these would tell nothing, except in double
        precision, where the steps are too small to cross one.
        """
        if not functions.foreign and functions.kinked and functions.unit > 1e-12:
            return True
        known = {f"{kind.__module__}.{kind.__qualname__}" for kind in self._classes}
        return functions.own <= self._names and all(
            kind in self._classes or name in self._names - known
            for name, kind in functions.foreign.items()
        )

    def believe(self, functions: Functions) -> None:
        """A product through these functions was right."""
        kinds = {kind for kind in functions.foreign.values() if kind is not None}
        self._names = self._names | functions.own | functions.foreign.keys()
        self._classes = self._classes | kinds

    def give_up(self, reason: str) -> None:
        """Take differences from now on."""
        self.method, self.reason = "finite_difference", reason

    def take(self, found: SecondDerivative) -> None:
        """Take over what a copy has found out."""
        self.__dict__.update(found.__dict__)

    def __copy__(self) -> SecondDerivative:
        twin = SecondDerivative(self.method)
        twin.take(self)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_classes": set()}

    def state_dict(self) -> dict[str, str] | None:
        """Plain strings; None as long as nothing has been found out."""
        if self.reason is None and not self._names:
            return None
        return {
            "method": self.method,
            "reason": self.reason or "",
            "checked": "\n".join(sorted(self._names)),
        }

    def load_state_dict(self, state: Mapping[str, str] | None) -> None:
        """Go on as the saved run would have; a method that is asked for by name stays."""
        self._forget()
        if state is None:
            return
        if self.method == "auto" and state["method"] == "finite_difference":
            self.give_up(state["reason"])
        self._names = set(filter(None, state["checked"].split("\n")))


STATE_KEYS = {"method", "reason", "checked"}
"""What ``SecondDerivative.state_dict`` holds."""


class Doubt(NamedTuple):
    """What speaks against an exact product.

    Attributes:
        refuted: the product is wrong; else it could not be confirmed.
        why: in words.
    """

    refuted: bool
    why: str


def compare(
    product: Sequence[Tensor | None], differences: Differences, *, unit: float, noise: float
) -> Doubt | None:
    r"""Compare an exact product with differences of gradients along the same vector.

    A difference with a step of length s has an error of order s², and one of order u / s by
    rounding. It is first taken at the balance of both, s = 2 u^(1/3), and agrees with the product
    to within some such lengths. Elsewhere the difference may be the wrong one: where kinks are
    crossed (ReLU), where a gradient is zero but for rounding (a bias before a normalisation).
    Then it changes with s, and with a smaller s fewer kinks are crossed. So a product is refuted
    only if it is far from differences of several steps that are near each other.

    Args:
        product: the product with a vector, tensor by tensor.
        differences: differences along the vector, for a step of a given length.
        unit: the rounding unit u.
        noise: the size of the gradient times that of the vector: rounding errors are a part of it.

    Returns:
        None if the product is confirmed.
    """
    tolerance = min(0.05, 10 * unit ** (1 / 3))
    undecided = list(range(len(product)))
    taken: list[Sequence[Tensor | None]] = []
    why = ""
    small = 2 * unit**0.5
    for step in (2 * unit ** (1 / 3), small, small / 4, small / 16):
        difference = differences(step)
        if not all(_finite(d) for d in difference):
            return Doubt(False, "differences of gradients to compare it with are not finite")
        floor = 8 * unit / step * noise if 8 * unit / step < 0.02 else 0.0
        undecided = [
            i
            for i in undecided
            if not _distance(product[i], difference[i])
            <= floor + tolerance * max(_size(product[i]), _size(difference[i]))
        ]
        for i in undecided:
            error = _distance(product[i], difference[i])
            why = (
                f"it differs from a difference of gradients by {error:.2g} where that is "
                f"{_size(difference[i]):.2g}, in parameter {i}"
            )
            if not _finite(product[i]) or any(
                16 * _distance(other[i], difference[i]) <= error for other in taken
            ):
                return Doubt(True, why)
        if not undecided:
            return None
        taken.append(difference)
    return Doubt(False, why)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _size(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(_wide(tensor).norm())


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        return _size(b if a is None else a)
    return float((_wide(a) - _wide(b)).norm())


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor).all())
