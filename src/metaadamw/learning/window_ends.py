r"""Where windows begin and end: the landing points between which they are measured.

Two tensors in the state of a parameter: where the window began, and how far the last one went.
Whoever resizes, prunes or clears optimizer state by convention treats both like moments. A cleared
entry is exactly +0 (a start that is zero by itself is kept as −0): there the window begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaadamw.learning.base import Step
from metaadamw.state.master_weights import float32_values
from metaadamw.state.token import DISPLACEMENT, WINDOW_KEYS, WINDOW_START, view
from metaadamw.statistics.layout import Column, Pair
from metaadamw.update.adamw import update_direction

__all__ = ["WINDOW_PRODUCTS", "WindowEnd", "WindowStarts"]

WINDOW_PRODUCTS: list[Pair] = [
    ("gradient_sum", "displacement"),
    ("gradient_sum", "gradient_sum"),
    ("displacement", "displacement"),
]
"""The inner products that the signal is made of."""

State = Mapping[Tensor, dict[str, Any]]


def _mark(start: Tensor) -> None:
    """Leave no entry of a start at +0."""
    start.masked_fill_(start == 0, -0.0)


def _cleared(start: Tensor) -> Tensor:
    """The entries that somebody has cleared, boolean."""
    return (start == 0) & ~torch.signbit(start)


class _Begun(NamedTuple):
    """When the window of a parameter began.

    Attributes:
        step: its step counter then: without a gradient there is no step, nor decay.
        shape: of the parameter.
        start: the tensor that was written; None where that is not known.
        version: of that tensor.
    """

    step: Tensor
    shape: torch.Size
    start: Tensor | None = None
    version: int = 0


class WindowStarts:
    """Since when the window of each parameter goes, keyed by the parameter."""

    def __init__(self) -> None:
        self.begun: dict[Tensor, _Begun] = {}

    def begin_missing(self, params: Sequence[Tensor], state: State) -> None:
        """Begin a window where there is none, where it was cleared, or of another shape."""
        # A new dict: what fails later in the step gets the old one back.
        self.begun = {p: self.begun[p] for p in params if p in self.begun}
        for param in params:
            entry = state.get(param)
            if not entry:
                continue
            begun = self.begun.get(param)
            kept: list[Tensor] = [entry[key] for key in WINDOW_KEYS if key in entry]
            fits = [t.shape for t in kept] == [param.shape] * 2
            if begun is None or not fits or begun.shape != param.shape:
                self._begin(param, entry)
            elif begun.start is not kept[0] or begun.version != kept[0]._version:
                self._begin_where_cleared(param, entry, begun)

    def _begin(self, param: Tensor, entry: dict[str, Any]) -> None:
        start = _values(param, entry)
        _mark(view(start))
        entry[WINDOW_START], entry[DISPLACEMENT] = start, torch.zeros_like(start)
        self.note(param, entry, entry["step"].clone())

    def _begin_where_cleared(self, param: Tensor, entry: Mapping[str, Any], begun: _Begun) -> None:
        """Entry by entry, and without asking the device: counted anew where all of them were."""
        start = view(entry[WINDOW_START])
        cleared = _cleared(start)
        start.copy_(torch.where(cleared, view(_values(param, entry)), start))
        _mark(start)
        then, now = (step.to(start.device) for step in (begun.step, entry["step"]))
        self.note(param, entry, torch.where(cleared.all(), now, then))

    def note(self, param: Tensor, entry: Mapping[str, Any], step: Tensor) -> None:
        """The window of a parameter goes since ``step``."""
        start = entry[WINDOW_START]
        self.begun[param] = _Begun(step, param.shape, start, start._version)

    def steps_of(self, params: Sequence[Tensor]) -> Tensor:
        """The step counters, [P]; −1 where there is no window."""
        none = torch.tensor(-1.0, device="cpu")
        steps = [self.begun[p].step if p in self.begun else none for p in params]
        return torch.stack([step.detach().cpu().float() for step in steps])

    def restore(self, params: Sequence[Tensor], steps: Tensor) -> None:
        """Take over the result of ``steps_of``."""
        self.begun = {
            param: _Begun(step.clone(), param.shape)
            for param, step in zip(params, steps.detach().cpu(), strict=True)
            if step >= 0
        }


def _values(param: Tensor, entry: Mapping[str, Any]) -> Tensor:
    return param.detach().to(entry["exp_avg"].dtype, copy=True)


class WindowEnd:
    r"""The end of one window and the begin of the next, between two steps.

    Args:
        step: the step about to be taken.
        starts: since when each window goes.
        rates: r, of the last step, [G].
        decays: :math:`\beta_g\lambda`, likewise.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: the step counters stay on the device.
    """

    def __init__(
        self,
        step: Step,
        starts: WindowStarts,
        rates: Tensor,
        decays: Tensor,
        *,
        eps_inside_sqrt: bool,
        capturable: bool,
    ) -> None:
        self._tokens, self._state, self._starts = step.tokens, step.state, starts
        self._rates, self._decayed = rates, rates * decays
        self._places = [
            (g, i) for g, token in enumerate(step.tokens) for i in range(len(token.params))
        ]
        self._eps_inside_sqrt, self._capturable = eps_inside_sqrt, capturable

    def _count(self, step: Tensor) -> float | Tensor:
        # A parameter without a step has not moved: any count but 0 says so.
        return max(step.item(), 1.0) if step.is_cpu and not self._capturable else step.clamp_min(1)

    def _landing(self, g: int, i: int, rate: Tensor) -> Tensor | None:
        """P of one tensor, if it has a window."""
        token = self._tokens[g]
        exp_avg, exp_avg_sq, step = token.exp_avgs[i], token.exp_avg_sqs[i], token.steps[i]
        if token.window_starts[i] is None or exp_avg is None or exp_avg_sq is None or step is None:
            return None
        beta1, _ = token.group["betas"]
        landing = update_direction(
            exp_avg,
            exp_avg_sq,
            self._count(step),
            betas=token.group["betas"],
            eps=token.group["eps"],
            eps_inside_sqrt=self._eps_inside_sqrt,
        )
        landing *= -(rate * beta1 / (1 - beta1)).to(landing)
        return landing.add_(self._param(g, i, landing.dtype))

    def _param(self, g: int, i: int, dtype: torch.dtype) -> Tensor:
        param = self._tokens[g].params[i]
        if param.dtype == dtype:
            return param
        return float32_values([param], [self._tokens[g].low_bits[i]])[0]

    def _displacement(self, g: int, i: int) -> Tensor | None:
        """D of one tensor; 0 where somebody has cleared the start."""
        start, landing = self._tokens[g].window_starts[i], self._landing(g, i, self._rates[g])
        if start is None or landing is None:
            return None
        return landing.sub_(start).masked_fill_(_cleared(start), 0.0)

    def columns(self) -> dict[str, Column]:
        """The columns of ``WINDOW_PRODUCTS``; nothing is written."""
        return {
            "displacement": [d for token in self._tokens for d in token.displacements],
            "gradient_sum": self._gradient_sum,
        }

    def _gradient_sum(self, place: int) -> Tensor | None:
        """S of the tensor at a position, made when it is asked for."""
        g, i = self._places[place]
        token = self._tokens[g]
        moved = self._displacement(g, i)
        exp_avg_sq, step = token.exp_avg_sqs[i], token.steps[i]
        begun = self._starts.begun.get(token.group["params"][i])
        if moved is None or exp_avg_sq is None or step is None or begun is None:
            return None
        steps = step.to(begun.step.device) - begun.step
        share = (self._decayed[g] * steps.to(self._decayed.device)).to(moved)
        eps = token.group["eps"]
        square: Tensor = exp_avg_sq / (1 - token.group["betas"][1] ** self._count(step))
        root = square.add_(eps).sqrt_() if self._eps_inside_sqrt else square.sqrt_().add_(eps)
        by_gradients = moved + share * self._param(g, i, moved.dtype)
        return root.mul_(by_gradients).neg_()

    @torch.no_grad()
    def begin_next(self, rates: Tensor) -> None:
        """Keep D and note where the next window begins: new tensors take the place of the old.

        Args:
            rates: of its steps, [G].
        """
        for g, i in self._places:
            token, param = self._tokens[g], self._tokens[g].group["params"][i]
            displacement, landing = self._displacement(g, i), self._landing(g, i, rates[g])
            step = token.steps[i]
            if displacement is None or landing is None or step is None:
                continue
            _mark(landing)
            entry = self._state[param]
            for key, value in ((WINDOW_START, landing), (DISPLACEMENT, displacement)):
                if view(entry[key]) is entry[key]:
                    entry[key] = value
                else:  # distributed or complex
                    kept = torch.empty_like(entry[key])
                    view(kept).copy_(value)
                    entry[key] = kept
            self._starts.note(param, entry, step.clone())
