r"""Sec. 3.4: the attention module :math:`\Phi`, from features [G, F] to α, β, λ₁, λ₂, each [G]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaadamw.config import ModulatorConfig
from metaadamw.kernels.encoder import encode, has_encoder
from metaadamw.kernels.modulator import modulate
from metaadamw.precision import full_precision

__all__ = ["BaseModulator", "Modulation", "Modulator", "rows_at"]


class Modulation(NamedTuple):
    r"""What the modulator says of each group (Eqs. 7–9); each tensor has shape [G].

    Attributes:
        alpha: factor on the learning rate, within 1 ± alpha_range / 2 (or that of the log scale).
        beta: factor on the weight decay, likewise.
        lambda1: weight of :math:`\lVert g'_g \rVert^2` in Eq. 10, within (0, 1).
        lambda2: weight of :math:`\cos(g_g, g'_g)` in Eq. 10, within (0, 1).
    """

    alpha: Tensor
    beta: Tensor
    lambda1: Tensor
    lambda2: Tensor


def encoder_layer(x: Tensor, weights: Sequence[Tensor], heads: int) -> Tensor:
    """A pre-norm Transformer encoder layer, [G, D] to [G, D], as plain tensor operations.

    The same numbers as ``nn.TransformerEncoderLayer(norm_first=True, dropout=0)``.

    Args:
        x: one token for each group.
        weights: the twelve tensors of the layer, in the order of ``ENCODER_TENSORS``.
        heads: attention heads, a divisor of D.
    """
    in_weight, in_bias, out_weight, out_bias, *norms, weight1, bias1, weight2, bias2 = weights
    groups, dim = x.shape
    y = F.layer_norm(x, (dim,), norms[0], norms[1])
    qkv = F.linear(y, in_weight, in_bias).view(groups, 3, heads, dim // heads)
    query, key, value = qkv.permute(1, 2, 0, 3)  # each [heads, G, D / heads]
    scores = (query * (dim // heads) ** -0.5) @ key.transpose(1, 2)
    mixed = (torch.softmax(scores, dim=-1) @ value).transpose(0, 1).reshape(groups, dim)
    x = x + F.linear(mixed, out_weight, out_bias)
    y = F.layer_norm(x, (dim,), norms[2], norms[3])
    return x + F.linear(F.relu(F.linear(y, weight1, bias1)), weight2, bias2)


ENCODER_TENSORS = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "norm1_weight",
    "norm1_bias",
    "norm2_weight",
    "norm2_bias",
    "linear1_weight",
    "linear1_bias",
    "linear2_weight",
    "linear2_bias",
)
"""The parameters of the encoder, in the order of ``encoder_layer``."""


def rows_at(old: Tensor, before: Sequence[int | None]) -> Tensor:
    """Rows of ``old`` by their positions; None gives a row of zeros."""
    rows = old.new_zeros(len(before), *old.shape[1:])
    for row, i in zip(rows, before, strict=True):
        if i is not None:
            row.copy_(old[i])
    return rows


class BaseModulator(nn.Module, ABC):
    """Whatever gives raw outputs, [G, 4], and learns: the ``Modulator``, or what it is compared to.

    Args:
        config: the ranges and the scale of the factors.
    """

    def __init__(self, config: ModulatorConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def weights(self) -> list[Tensor]:
        """``parameters()`` without its search through submodules: there are none."""
        return [p for p in self._parameters.values() if p is not None]

    @abstractmethod
    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """Eqs. 5–6: features [G, F] to the raw outputs, [G, 4]."""

    @abstractmethod
    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """What belongs to one group follows it to its new place, in a new parameter.

        Args:
            names: of all groups.
            before: where each of them was; None for one that is new.
        """

    @abstractmethod
    def penalty(self, weight_decay: float, gate_sparsity: float) -> Tensor:
        """What the meta-objective adds for large weights and open gates."""

    def forward(self, features: Tensor, *, once_differentiable: bool = False) -> Modulation:
        r"""Eqs. 5–9.

        .. math:: \alpha_g = 1 + range_\alpha (\sigma(\alpha_g^{raw}) - 0.5), \quad
                  \beta_g = 1 + range_\beta (\sigma(\beta_g^{raw}) - 0.5), \quad
                  \lambda_{i,g} = \sigma(\lambda_{i,g}^{raw})

        On the log scale :math:`\alpha_g = \exp(r\tanh(\alpha_g^{raw}/r))`, r the range; likewise β.
        With ``mean_preserving`` :math:`\alpha_g` is divided by its geometric mean over the groups.

        Args:
            features: shape [G, F].
            once_differentiable: nobody will ask for a second derivative, or for a gradient by
                ``torch.func``: faster on a CPU.

        Raises:
            ValueError: features of another shape.
        """
        raw = self.raw_outputs(features, once_differentiable=once_differentiable)
        return self.factors(raw)

    def factors(self, raw: Tensor) -> Modulation:
        """Eqs. 7–9 from raw outputs, [G, 4]."""
        alpha_raw, beta, lambda1, lambda2 = raw.unbind(1)
        alpha = self._factor(alpha_raw, self.config.alpha_range)
        if self.config.mean_preserving:
            alpha = alpha / alpha.log().mean().exp()
        return Modulation(
            alpha=alpha,
            beta=self._factor(beta, self.config.beta_range),
            lambda1=torch.sigmoid(lambda1),
            lambda2=torch.sigmoid(lambda2),
        )

    def _factor(self, raw: Tensor, width: float) -> Tensor:
        if self.config.scale == "linear":
            return 1 + width * (torch.sigmoid(raw) - 0.5)
        return torch.exp(width * torch.tanh(raw / width) if width else 0 * raw)


class Modulator(BaseModulator):
    r"""Transformer encoder over the groups, then a linear output and sigmoids (Eqs. 5–9).

    Pre-norm layers, ReLU, no dropout, no final norm; the model dimension D is the number of
    features (and of the group embedding), zero-padded to a multiple of the heads. The parameters of
    all layers are stacked, [L, …]: few tensors for an optimizer and a checkpoint. A layer computes
    what ``nn.TransformerEncoderLayer(norm_first=True)`` does.

    Args:
        num_features: F.
        num_groups: G; only the group embedding depends on it.
        config: layers, heads, ranges, gating, init.
        embedding_dim: dimension of the learnable group embedding, 0 for none.
        frozen_gates: no gradient for the gates, as in the authors' code.
        seed: seed of the initial weights; global random streams are not touched.

    Example:
        >>> modulator = Modulator(6, 3, ModulatorConfig(init="identity"))
        >>> modulator(torch.randn(3, 6)).alpha
        tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int,
        config: ModulatorConfig,
        *,
        embedding_dim: int = 0,
        frozen_gates: bool = False,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        device = torch.get_default_device() if device is None else device
        self.seed, self.frozen_gates, self.embedding_dim = seed, frozen_gates, embedding_dim
        self.num_features = num_features
        heads = config.heads
        self.dim = -(-(num_features + embedding_dim) // heads) * heads
        generator = torch.Generator().manual_seed(seed)

        def xavier(count: int, rows: int, columns: int) -> nn.Parameter:
            # Drawn on the CPU in float64, so that every device and precision starts from the same
            # numbers.
            weight = torch.empty(count, rows, columns, dtype=torch.float64, device="cpu")
            for matrix in weight:
                nn.init.xavier_uniform_(matrix, generator=generator)
            return nn.Parameter(weight.to(device=device, dtype=dtype or torch.get_default_dtype()))

        def full(value: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.full(shape, value, device=device, dtype=dtype))

        layers, hidden, dim = config.layers, config.hidden_dim, self.dim
        self.in_proj_weight = xavier(layers, 3 * dim, dim)
        self.in_proj_bias = full(0.0, layers, 3 * dim)
        self.out_proj_weight = xavier(layers, dim, dim)
        self.out_proj_bias = full(0.0, layers, dim)
        self.norm1_weight = full(1.0, layers, dim)
        self.norm1_bias = full(0.0, layers, dim)
        self.norm2_weight = full(1.0, layers, dim)
        self.norm2_bias = full(0.0, layers, dim)
        self.linear1_weight = xavier(layers, hidden, dim)
        self.linear1_bias = full(0.0, layers, hidden)
        self.linear2_weight = xavier(layers, dim, hidden)
        self.linear2_bias = full(0.0, layers, dim)
        output_weight = xavier(1, 4, dim)
        self.output_weight = nn.Parameter(output_weight.detach().squeeze(0))
        if config.init == "identity":
            nn.init.zeros_(self.output_weight)
        self.output_bias = full(0.0, 4)
        nn.init.constant_(self.output_bias[0], config.raw_start())
        if config.feature_gating:
            self.gate_logits = full(1.0, num_features)
        if embedding_dim:
            self.group_embedding = full(0.0, 0, embedding_dim)
            self.regroup([""] * num_groups, [None] * num_groups)

    def regroup(self, names: Sequence[str], before: Sequence[int | None]) -> None:
        """Give new groups a row of the group embedding, N(0, 0.1²); the others keep theirs."""
        if not hasattr(self, "group_embedding"):
            return
        rows = rows_at(self.group_embedding.detach(), before)
        for index, row in enumerate(rows):
            if before[index] is None:
                # One stream per row: the start of a group does not depend on when it was added.
                generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (index + 1))
                options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
                row.copy_(0.1 * torch.randn(len(row), generator=generator, **options))
        self.group_embedding = nn.Parameter(rows)

    def encoder_tensors(self) -> list[Tensor]:
        """The stacked encoder tensors, each [L, …]."""
        return [getattr(self, name) for name in ENCODER_TENSORS]

    def regulariser(self) -> Tensor:
        r""":math:`\sum \lVert W \rVert_2`, not squared, over encoder tensors and output weight."""
        total: Tensor = torch.linalg.vector_norm(self.output_weight)
        for stacked in self.encoder_tensors():
            total = total + torch.linalg.vector_norm(stacked.flatten(1), dim=1).sum()
        return total

    def penalty(self, weight_decay: float, gate_sparsity: float) -> Tensor:
        r""":math:`\text{weight\_decay}\sum\lVert W\rVert_2 + \text{gate\_sparsity}\sum|gate|`."""
        total = weight_decay * self.regulariser()
        if self.config.feature_gating:
            total = total + gate_sparsity * self.gate_logits.abs().sum()
        return total

    def encode(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """Eq. 5: features [G, F] to Z [G, D]."""
        x = features
        if self.config.feature_gating:
            logits = self.gate_logits.detach() if self.frozen_gates else self.gate_logits
            x = x * torch.sigmoid(logits)
        if hasattr(self, "group_embedding"):
            x = torch.cat([x, self.group_embedding], dim=1)
        if x.shape[1] < self.dim:
            x = F.pad(x, (0, self.dim - x.shape[1]))
        tensors, heads = self.encoder_tensors(), self.config.heads
        if (once_differentiable or not torch.is_grad_enabled()) and has_encoder(x):
            return encode(x, tensors, heads)
        # A softmax does not feel the bias of its keys. Their gradient is all rounding, which Adam
        # would turn into steps of any size, in another direction on every machine.
        query, key, value = tensors[1].chunk(3, dim=1)
        tensors[1] = torch.cat([query, key.detach(), value], dim=1)
        layers = zip(*(t.unbind(0) for t in tensors), strict=True)
        if not torch.is_grad_enabled() and x.device.type in ("cpu", "cuda"):
            # One kernel for a layer, the one behind nn.TransformerEncoderLayer in inference.
            z = x.unsqueeze(0)
            for w in layers:
                z = torch._transformer_encoder_layer_fwd(
                    *(z, self.dim, heads, *w[:4], False, True, 1e-5, *w[4:])
                )
            return z.squeeze(0)
        for weights in layers:
            x = encoder_layer(x, weights, heads)
        return x

    def forward(self, features: Tensor, *, once_differentiable: bool = False) -> Modulation:
        """Eqs. 5–9; see ``BaseModulator.forward``."""
        self._check(features)
        if not torch.is_grad_enabled() and (rows := modulate(self, features)) is not None:
            return Modulation(*rows.unbind(0))
        return super().forward(features, once_differentiable=once_differentiable)

    def _check(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features must have shape [G, {self.num_features}], got {tuple(features.shape)}"
            )

    def raw_outputs(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """Eqs. 5–6: features [G, F] to the raw outputs, [G, 4].

        Raises:
            ValueError: the number of columns is not F.
        """
        self._check(features)
        with full_precision(features.device):
            encoded = self.encode(features, once_differentiable=once_differentiable)
            return F.linear(encoded, self.output_weight, self.output_bias)
