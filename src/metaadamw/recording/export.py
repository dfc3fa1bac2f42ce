"""Train on without this library: what was learned, as param groups of ``torch.optim.AdamW``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metaadamw.checks import check_count, check_type
from metaadamw.optimizer import MetaAdamW
from metaadamw.recording.recorder import Recorder

__all__ = ["adamw_groups"]


def adamw_groups(
    source: MetaAdamW | Recorder, *, start: int | None = None, stop: int | None = None
) -> list[dict[str, Any]]:
    r"""Param groups for ``torch.optim.AdamW`` with the learned multipliers.

    .. math:: \eta_g = \eta\,\bar\alpha_g, \qquad \lambda_g = \bar\beta_g\lambda

    The bars are geometric means over the steps from ``start`` on and before ``stop``: factors act
    by their ratios. A learning rate schedule made for the new optimizer multiplies them further.

    Args:
        source: an optimizer, whose factors of the last step are taken, or a ``Recorder`` of it.
        start: first step of the span, counted from 0. None: the first that was recorded.
        stop: the step after its last. None: up to the last.

    Returns:
        For each group its parameters, with "lr", "weight_decay", "betas", "eps" and "name".

    Raises:
        ValueError: a span without a recorded step, or a span of a bare optimizer.
        TypeError: ``source`` is neither.

    Example:
        >>> groups = adamw_groups(optimizer)
        >>> plain = torch.optim.AdamW(groups, fused=True)
    """
    check_type("source", source, MetaAdamW, Recorder)
    for name, value in (("start", start), ("stop", stop)):
        if value is not None:
            check_count(name, value, 0)
    if isinstance(source, MetaAdamW):
        if start is not None or stop is not None:
            raise ValueError(
                "source must be a Recorder for a span of the run: an optimizer knows its last "
                f"step only, got start={start}, stop={stop}"
            )
        optimizer, (alpha, beta, *_) = source, source.modulation
    else:
        optimizer = source.optimizer
        alpha, beta = (_mean(history) for history in source.span(start, stop))
    return [
        _plain(group, a, b)
        for group, a, b in zip(
            optimizer.param_groups, alpha.double().tolist(), beta.double().tolist(), strict=True
        )
    ]


def _mean(history: Tensor) -> Tensor:
    """The geometric mean over the steps, [T, G] to [G]; one that was ever 0 is 0."""
    return history.double().log().mean(0).exp()


def _plain(group: dict[str, Any], alpha: float, beta: float) -> dict[str, Any]:
    return {
        "params": list(group["params"]),
        "name": group["name"],
        "lr": float(group["lr"]) * alpha,
        "weight_decay": float(group["weight_decay"]) * beta,
        "betas": group["betas"],
        "eps": group["eps"],
    }
