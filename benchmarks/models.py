"""Models and bare parameters whose size can be chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaadamw import fine_grained_groups
from metaadamw_bench.models.language_model import LanguageModel

Batch = tuple[Tensor, ...]
ParamGroups = list[dict[str, Any]]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Loss on (inputs…, target classes), the classes being the last dimension of the output."""
    *inputs, target = batch
    return nn.functional.cross_entropy(model(*inputs).flatten(0, -2), target.flatten())


def token_batch(vocabulary: int, batch: int, length: int) -> Batch:
    """Random tokens and their successors."""
    tokens = torch.randint(vocabulary, (batch, length + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def mini_gpt(quick: bool) -> LanguageModel:
    """3.0 M parameters in 30 tensors: pre-norm layers, untied head; in quick mode a hundredth."""
    torch.manual_seed(0)
    return LanguageModel(200, 16, 16, dropout=0.0) if quick else LanguageModel(10_000, dropout=0.0)


def mini_gpt_batch(quick: bool) -> Batch:
    """16 × 128 tokens; in quick mode 2 × 16."""
    return token_batch(200, 2, 16) if quick else token_batch(10_000, 16, 128)


def wide_model(dim: int = 2048, layers: int = 12) -> nn.Module:
    """A model beside whose parameters (50 M) its activations are small."""
    linear = (nn.Linear(dim, dim, bias=False) for _ in range(layers))
    return nn.Sequential(*(module for layer in linear for module in (layer, nn.Tanh())))


def square(model: nn.Module, batch: Batch) -> Tensor:
    """Mean square of the output."""
    return model(*batch).square().mean()


def model_groups(model: nn.Module) -> ParamGroups:
    """The paper's groups, every parameter with a random gradient."""
    for param in model.parameters():
        param.grad = 0.01 * torch.randn_like(param)
    return fine_grained_groups(model, kinds="paper")


def bare_groups(
    parameters: int, tensors: int, groups: int = 12, device: torch.device | str = "cpu"
) -> ParamGroups:
    """Parameters without a model, dealt out to the groups in turn, with random gradients."""
    result: ParamGroups = [{"params": [], "name": f"group{g}"} for g in range(groups)]
    for i in range(tensors):
        param = nn.Parameter(0.02 * torch.randn(parameters // tensors, device=device))
        param.grad = 0.01 * torch.randn_like(param)
        result[i % groups]["params"].append(param)
    return result


def twins(groups: Iterable[dict[str, Any]]) -> ParamGroups:
    """The same groups with parameters of their own, which share the originals' gradients."""
    result = []
    for group in groups:
        params = [nn.Parameter(param.detach().clone()) for param in group["params"]]
        for twin, param in zip(params, group["params"], strict=True):
            twin.grad = param.grad
        result.append({**group, "params": params})
    return result


def all_params(groups: Iterable[dict[str, Any]]) -> list[nn.Parameter]:
    """The parameters of all groups, in order."""
    return [param for group in groups for param in group["params"]]
