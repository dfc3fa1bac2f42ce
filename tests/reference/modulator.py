"""Sec. 3.4, Eqs. 5-9: the modulator, made of PyTorch's own Transformer encoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# The library stacks each of these over the layers; the values are the names that
# nn.TransformerEncoderLayer gives to the same tensor of one layer.
ENCODER_NAMES = {
    "in_proj_weight": "self_attn.in_proj_weight",
    "in_proj_bias": "self_attn.in_proj_bias",
    "out_proj_weight": "self_attn.out_proj.weight",
    "out_proj_bias": "self_attn.out_proj.bias",
    "norm1_weight": "norm1.weight",
    "norm1_bias": "norm1.bias",
    "norm2_weight": "norm2.weight",
    "norm2_bias": "norm2.bias",
    "linear1_weight": "linear1.weight",
    "linear1_bias": "linear1.bias",
    "linear2_weight": "linear2.weight",
    "linear2_bias": "linear2.bias",
}
OTHER_NAMES = {
    "output_weight": "output.weight",
    "output_bias": "output.bias",
    "gate_logits": "gate_logits",
    "group_embedding": "group_embedding",
}


class ReferenceModulation(NamedTuple):
    """The four numbers of every group, each of shape [G]."""

    alpha: Tensor
    beta: Tensor
    lambda1: Tensor
    lambda2: Tensor


class ReferenceModulator(nn.Module):
    """Phi: features [G, F] -> alpha, beta, lambda1, lambda2, each [G].

    Args:
        feature_count: The number of feature columns F, without the group embedding.
        layers: The number of encoder layers L.
        heads: The number of attention heads H.
        hidden_dim: The width of the feed-forward block D_ff.
        alpha_range: range_alpha of Eq. 7.
        beta_range: range_beta of Eq. 8.
        feature_gating: Whether each feature column is multiplied by a learned gate.
        embedded_groups: The number of groups that get a learnable embedding, or None.
        embedding_dim: The width of that embedding.
        dtype: The dtype of every weight.
    """

    def __init__(
        self,
        feature_count: int,
        *,
        layers: int = 2,
        heads: int = 1,
        hidden_dim: int = 16,
        alpha_range: float = 1.0,
        beta_range: float = 1.0,
        feature_gating: bool = False,
        embedded_groups: int | None = None,
        embedding_dim: int = 4,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.alpha_range = alpha_range
        self.beta_range = beta_range
        self.gate_logits = None
        if feature_gating:
            self.gate_logits = nn.Parameter(torch.ones(feature_count, dtype=dtype))
        self.group_embedding = None
        width = feature_count
        if embedded_groups is not None:
            embedding = 0.1 * torch.randn(embedded_groups, embedding_dim, dtype=dtype)
            self.group_embedding = nn.Parameter(embedding)
            width += embedding_dim
        self.padding = -width % heads
        self.dimension = width + self.padding
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model=self.dimension,
                nhead=heads,
                dim_feedforward=hidden_dim,
                dropout=0.0,
                activation="relu",
                layer_norm_eps=1e-5,
                batch_first=True,
                norm_first=True,
                dtype=dtype,
            )
            for _ in range(layers)
        )
        self.output = nn.Linear(self.dimension, 4, dtype=dtype)

    def encode(self, features: Tensor) -> Tensor:
        """Eq. 5: Z = TransformerEncoder(F), after gates, group embedding and zero padding."""
        tokens = features
        if self.gate_logits is not None:
            tokens = tokens * torch.sigmoid(self.gate_logits)
        if self.group_embedding is not None:
            tokens = torch.cat([tokens, self.group_embedding], dim=1)
        zeros = torch.zeros(tokens.shape[0], self.padding, dtype=tokens.dtype)
        z = torch.cat([tokens, zeros], dim=1).unsqueeze(0)
        for layer in self.layers:
            z = layer(z)
        return z.squeeze(0)

    def forward(self, features: Tensor) -> ReferenceModulation:
        """Eqs. 5-9."""
        raw = self.output(self.encode(features))  # Eq. 6
        alpha_raw, beta_raw, lambda1_raw, lambda2_raw = raw.unbind(dim=1)
        return ReferenceModulation(
            alpha=1.0 + self.alpha_range * (torch.sigmoid(alpha_raw) - 0.5),  # Eq. 7
            beta=1.0 + self.beta_range * (torch.sigmoid(beta_raw) - 0.5),  # Eq. 8
            lambda1=torch.sigmoid(lambda1_raw),  # Eq. 9
            lambda2=torch.sigmoid(lambda2_raw),  # Eq. 9
        )


def reference_name_groups(reference: ReferenceModulator) -> dict[str, list[str]]:
    """Map each library name to the reference's names: one per layer, or just one."""
    own = dict(reference.named_parameters())
    names = {
        library: [f"layers.{index}.{name}" for index in range(len(reference.layers))]
        for library, name in ENCODER_NAMES.items()
    }
    names.update({library: [name] for library, name in OTHER_NAMES.items() if name in own})
    return names


def to_library_layout(
    reference: ReferenceModulator, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename tensors (weights or gradients) by the reference's names to the library's layout."""
    result = {}
    for library, names in reference_name_groups(reference).items():
        if library in ENCODER_NAMES:
            result[library] = torch.stack([tensors[name] for name in names])
        else:
            result[library] = tensors[names[0]]
    return result


def library_weights(reference: ReferenceModulator) -> dict[str, Tensor]:
    """The reference's weights, copied into the library's layout."""
    weights = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    return to_library_layout(reference, weights)


def load_library_weights(
    reference: ReferenceModulator, library_state_dict: Mapping[str, Tensor]
) -> ReferenceModulator:
    """Copy a library modulator's weights into the reference; every name must match."""
    names = reference_name_groups(reference)
    if set(names) != set(library_state_dict):
        raise ValueError(f"weights {sorted(library_state_dict)} must be {sorted(names)}")
    own = dict(reference.named_parameters())
    with torch.no_grad():
        for library, weight in library_state_dict.items():
            parts = weight.unbind(0) if library in ENCODER_NAMES else [weight]
            for name, part in zip(names[library], parts, strict=True):
                if own[name].shape != part.shape:
                    raise ValueError(f"{library} has shape {part.shape}, not {own[name].shape}")
                own[name].copy_(part)
    return reference


def modulator_from_library(
    library_state_dict: Mapping[str, Tensor],
    *,
    feature_count: int,
    heads: int,
    alpha_range: float = 1.0,
    beta_range: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> ReferenceModulator:
    """Build the reference whose sizes and weights are those of a library modulator."""
    embedding = library_state_dict.get("group_embedding")
    layers, hidden_dim, _ = library_state_dict["linear1_weight"].shape
    reference = ReferenceModulator(
        feature_count,
        layers=layers,
        heads=heads,
        hidden_dim=hidden_dim,
        alpha_range=alpha_range,
        beta_range=beta_range,
        feature_gating="gate_logits" in library_state_dict,
        embedded_groups=None if embedding is None else embedding.shape[0],
        embedding_dim=4 if embedding is None else embedding.shape[1],
        dtype=dtype,
    )
    return load_library_weights(reference, library_state_dict)


def modulator_gradient(value: Tensor, reference: ReferenceModulator) -> dict[str, Tensor]:
    """The gradient of a scalar with respect to every weight of Phi, in the library's layout.

    A weight on which the value does not depend has a zero gradient.
    """
    named = dict(reference.named_parameters())
    if not value.requires_grad:
        return to_library_layout(reference, {n: torch.zeros_like(w) for n, w in named.items()})
    gradients = torch.autograd.grad(
        value, list(named.values()), allow_unused=True, retain_graph=True
    )
    filled = {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(named.items(), gradients, strict=True)
    }
    return to_library_layout(reference, filled)


def regulariser(
    reference: ReferenceModulator, weight_decay: float, gate_sparsity: float | None = None
) -> Tensor:
    """The penalty on Phi: weight_decay * sum ||W||_2 (not squared) + gate_sparsity * sum |logit|.

    W runs over the twelve tensors of each encoder layer and the output weight; the output bias,
    the gates and the group embedding are left out. A norm has the (sub)gradient 0 at W = 0.
    Without ``gate_sparsity`` the gates get the coefficient ``weight_decay``.
    """
    penalty = torch.linalg.vector_norm(reference.output.weight)
    for layer in reference.layers:
        for weight in layer.parameters():
            penalty = penalty + torch.linalg.vector_norm(weight)
    penalty = weight_decay * penalty
    if reference.gate_logits is not None:
        coefficient = weight_decay if gate_sparsity is None else gate_sparsity
        penalty = penalty + coefficient * reference.gate_logits.abs().sum()
    return penalty
