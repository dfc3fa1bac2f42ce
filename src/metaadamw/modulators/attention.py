r"""Sec. 3.4: the attention module :math:`\Phi`, from features [G, F] to α, β, λ₁, λ₂, each [G]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaadamw.checks import check_choice, check_count, check_flag, check_number
from metaadamw.modulators.base import Modulation, Modulator, ModulatorOptions, rows_at
from metaadamw.modulators.encoder import ENCODER_TENSORS, encoder_layer
from metaadamw.modulators.encoder_kernel import encode, has_encoder
from metaadamw.modulators.kernel import modulate
from metaadamw.state.precision import full_precision
from metaadamw.statistics.features import EMBEDDING_DIM, FEATURE_TABLES, Feature, feature_table

__all__ = ["Attention", "AttentionModulator"]


@dataclass(frozen=True, kw_only=True)
class Attention(ModulatorOptions):
    r"""The paper's modulator :math:`\Phi`: a Transformer encoder over the groups (Eqs. 5–9).

    Args:
        features: what it reads of a group (Sec. 3.3): "basic" (paper), "basic_plus", "enhanced",
            "norm_basic", "norm_basic_plus", "scale_free" (ours), or "basic_plus_as_run" (the
            columns behind the authors' "basic_plus" numbers).
        second_moment_norm: add the norm of ``exp_avg_sq`` to the features.
        time_step: add the time step.
        feature_gating: multiply each column with a learned gate.
        layers: encoder layers L.
        heads: attention heads H; the features are zero-padded to a multiple of it.
        hidden_dim: width of the feed-forward part of a layer.
        alpha_range: Eq. 7, α lies in 1 ± alpha_range / 2; from 0 (α is 1) to 2. With
            ``scale="log"`` the largest :math:`|\log\alpha|`, any number from 0.
        beta_range: Eq. 8, likewise for β.
        scale: "linear" (Eqs. 7–8) or "log" (ours): :math:`\alpha = \exp(r\tanh(raw/r))` with
            r = alpha_range, so that halving is as far away as doubling; likewise for β.
        alpha_start: α at birth with ``init="identity"``, within its range.
        mean_preserving: with ``scale="log"``, the geometric mean of α over the groups stays 1
            (ours): your learning rate and its schedule hold for all of them together, and α only
            says how much of it goes where. Then α lies within e^±2·alpha_range.
        init: "identity" (output layer zero: α = β = 1 until something was learned) or "xavier"
            (paper).
        update_every: steps between two refreshes of α and β; they are held in between.
        gate_sparsity: coefficient of :math:`\sum |gate\ logit|` when it learns; None: the
            ``weight_decay`` of what it learns by.
        frozen_gates: the gates never learn, as in the authors' code.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown option.

    Example:
        >>> Attention(features="scale_free", layers=1).heads
        1

    Source: Zhao & Liu (2026), Sec. 3.4.
    """

    features: str = "basic"
    second_moment_norm: bool = True
    time_step: bool = True
    feature_gating: bool = False
    layers: int = 2
    heads: int = 1
    hidden_dim: int = 16
    alpha_range: float = 1.0
    beta_range: float = 1.0
    scale: Literal["linear", "log"] = "linear"
    alpha_start: float = 1.0
    mean_preserving: bool = False
    init: Literal["identity", "xavier"] = "identity"
    update_every: int = 1
    gate_sparsity: float | None = None
    frozen_gates: bool = False

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choice("features", self.features, tuple(FEATURE_TABLES))
        for flag in ("second_moment_norm", "time_step", "feature_gating", "frozen_gates"):
            check_flag(flag, getattr(self, flag))
        for count in ("layers", "heads", "hidden_dim"):
            check_count(count, getattr(self, count), 1)
        check_choice("init", self.init, ("identity", "xavier"))
        super().__post_init__()
        if self.alpha_start != 1.0 and self.init != "identity":
            raise ValueError(
                f"alpha_start must be 1 with init={self.init!r}, got {self.alpha_start!r}"
            )
        if self.gate_sparsity is not None:
            check_number("gate_sparsity", self.gate_sparsity, 0.0)

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint must have been made with, beside tensors of the same shapes."""
        return {**super().architecture, "heads": self.heads}

    @property
    def table(self) -> tuple[Feature, ...]:
        """The features that it reads, F columns."""
        return feature_table(
            self.features, second_moment_norm=self.second_moment_norm, time_step=self.time_step
        )

    def build(
        self,
        names: Sequence[str],
        *,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> AttentionModulator:
        """The encoder, at birth; see ``ModulatorOptions.build``."""
        return AttentionModulator(
            len(self.table),
            len(names),
            self,
            embedding_dim=EMBEDDING_DIM.get(self.features, 0),
            seed=seed,
            device=device,
            dtype=dtype,
        )


class AttentionModulator(Modulator):
    r"""Transformer encoder over the groups, then a linear output and sigmoids (Eqs. 5–9).

    Pre-norm layers, ReLU, no dropout, no final norm; the model dimension D is the number of
    features (and of the group embedding), zero-padded to a multiple of the heads. The parameters of
    all layers are stacked, [L, …]: few tensors for an optimizer and a checkpoint. A layer computes
    what ``nn.TransformerEncoderLayer(norm_first=True)`` does.

    Args:
        num_features: F.
        num_groups: G; only the group embedding depends on it.
        options: layers, heads, ranges, gating, init.
        embedding_dim: dimension of the learnable group embedding, 0 for none.
        seed: seed of the initial weights; global random streams are not touched.

    Example:
        >>> modulator = AttentionModulator(6, 3, Attention())
        >>> modulator(torch.randn(3, 6)).alpha
        tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int,
        options: Attention,
        *,
        embedding_dim: int = 0,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(options)
        self.options: Attention = options
        device = torch.get_default_device() if device is None else device
        self.seed, self.embedding_dim = seed, embedding_dim
        self.frozen_gates = options.frozen_gates
        self.num_features = num_features
        heads = options.heads
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

        layers, hidden, dim = options.layers, options.hidden_dim, self.dim
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
        if options.init == "identity":
            nn.init.zeros_(self.output_weight)
        self.output_bias = full(0.0, 4)
        nn.init.constant_(self.output_bias[0], options.raw_start())
        if options.feature_gating:
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
                kind: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
                row.copy_(0.1 * torch.randn(len(row), generator=generator, **kind))
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

    def gate_sparsity(self, weight_decay: float) -> float:
        r"""Coefficient of :math:`\sum |gate|`, of gates that learn."""
        given = self.options.gate_sparsity
        return 0.0 if self.frozen_gates else weight_decay if given is None else given

    def penalty(self, weight_decay: float) -> Tensor:
        r""":math:`\text{weight\_decay}\sum\lVert W\rVert_2 + \text{gate\_sparsity}\sum|gate|`."""
        total = weight_decay * self.regulariser()
        if self.options.feature_gating:
            total = total + self.gate_sparsity(weight_decay) * self.gate_logits.abs().sum()
        return total

    def encode(self, features: Tensor, *, once_differentiable: bool = False) -> Tensor:
        """Eq. 5: features [G, F] to Z [G, D]."""
        x = features
        if self.options.feature_gating:
            logits = self.gate_logits.detach() if self.frozen_gates else self.gate_logits
            x = x * torch.sigmoid(logits)
        if hasattr(self, "group_embedding"):
            x = torch.cat([x, self.group_embedding], dim=1)
        if x.shape[1] < self.dim:
            x = F.pad(x, (0, self.dim - x.shape[1]))
        tensors, heads = self.encoder_tensors(), self.options.heads
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
        """Eqs. 5–9; see ``Modulator.forward``."""
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
