r"""Sec. 3.5, Eq. 13: priority-injected homoscedastic uncertainty weighting of several losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metaadamw.checks import check_choice, check_number, check_numbers

__all__ = ["PriorityUncertaintyWeighting"]


class PriorityUncertaintyWeighting(nn.Module):
    r"""Learned weights for n losses, with a priority for each.

    .. math:: \text{regression (Eq. 13): } \sum_i \tfrac12 e^{-s_i}\mathcal L_i + \tfrac12 p_i s_i
              \qquad \text{classification: } \sum_i e^{-s_i}\mathcal L_i + p_i s_i

    with :math:`s_i = \log\sigma_i^2`. As published, the sum has no minimum where a loss is
    negative: :math:`s_i` runs to
    :math:`-\infty`. Here :math:`s_i = c\tanh(r_i / c)` of a free parameter :math:`r_i`, so that
    :math:`|s_i| < c`, every weight lies within :math:`e^{\pm c}` of its start, and the sum is
    bounded below wherever the losses are. At
    :math:`r = 0`, where training starts, value and gradient are the published ones. ``bound=None``
    selects the published form.

    Usable on its own in any multi-task model: give its parameters to your optimizer (without weight
    decay).

    Args:
        priorities: :math:`p_i > 0`, one for each loss.
        kind: "regression" or "classification".
        bound: c > 0, or None.

    Raises:
        ValueError: a priority or bound that is not positive; an unknown kind.

    Example:
        >>> weighting = PriorityUncertaintyWeighting([1.0, 2.0])
        >>> weighting([torch.tensor(0.5), torch.tensor(0.1)])
        tensor(0.3000, grad_fn=<SumBackward0>)

    Source: Zhao & Liu (2026), Eq. 13, after Kendall et al. (2018).
    """

    priorities: Tensor

    def __init__(
        self,
        priorities: Sequence[float],
        *,
        kind: Literal["regression", "classification"] = "regression",
        bound: float | None = 3.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_numbers("priorities", priorities, None, 0.0, open_low=True)
        check_choice("kind", kind, ("regression", "classification"))
        if bound is not None:
            check_number("bound", bound, 0.0, open_low=True)
        self.kind, self.bound = kind, bound
        device = torch.empty(0).device if device is None else device
        on_host = torch.tensor(priorities, dtype=dtype, device="cpu")
        self.register_buffer("priorities", on_host.to(device))
        self.raw_log_variances = nn.Parameter(
            torch.zeros(len(priorities), device=device, dtype=dtype)
        )

    @property
    def log_variances(self) -> Tensor:
        r""":math:`s_i = \log\sigma_i^2`, shape [n]."""
        if self.bound is None:
            return self.raw_log_variances
        return self.bound * torch.tanh(self.raw_log_variances / self.bound)

    def forward(self, losses: Tensor | Sequence[Tensor]) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            losses: n scalars, as a sequence or a tensor of shape [n].

        Raises:
            ValueError: not one loss for each priority.
        """
        terms = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        if terms.shape != self.priorities.shape:
            raise ValueError(
                f"losses must have shape {tuple(self.priorities.shape)}, one for each priority, "
                f"got {tuple(terms.shape)}"
            )
        log_variances = self.log_variances
        scale = 0.5 if self.kind == "regression" else 1.0
        return (scale * (torch.exp(-log_variances) * terms + self.priorities * log_variances)).sum()
