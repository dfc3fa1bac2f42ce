"""Sec. 3.4: the modulator against one built of nn.TransformerEncoderLayer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaadamw import Attention, Hypergradient, MetaAdamW, Modulation
from metaadamw.modulators.attention import AttentionModulator
from tests.learning import learning_of
from tests.reference.modulator import (
    ReferenceModulator,
    modulator_from_library,
    modulator_gradient,
    regulariser,
)

# Matrix products of at most 64 terms through at most 8 layers, in float64.
TOLERANCE = 1e-12
COLUMNS, GROUPS = 6, 5

SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "one-layer": {"layers": 1},
    "deep": {"layers": 8, "hidden_dim": 64},
    "two-heads": {"heads": 2},
    "padded": {"heads": 4},
    "head-per-column": {"heads": 6, "layers": 3},
    "gated": {"feature_gating": True},
    "embedded": {"embedding_dim": 4},
    "everything": {"heads": 7, "feature_gating": True, "embedding_dim": 4, "hidden_dim": 5},
    "ranges": {"alpha_range": 2.0, "beta_range": 0.3},
    "no-range": {"alpha_range": 0.0, "beta_range": 0.0},
}
sizes = pytest.mark.parametrize("options", SIZES.values(), ids=SIZES)


def library(options: dict[str, Any], *, random: bool = False, **config: Any) -> AttentionModulator:
    """A modulator in float64, with Xavier birth or weights all over the place."""
    options = {"init": "xavier", **options, **config}
    embedding_dim = options.pop("embedding_dim", 0)
    modulator = AttentionModulator(
        COLUMNS,
        GROUPS,
        Attention(**options),
        embedding_dim=embedding_dim,
        dtype=torch.float64,
    )
    if random:
        with torch.no_grad():
            for weight in modulator.parameters():
                weight.add_(0.5 * torch.randn_like(weight))
    return modulator


def twin_of(modulator: AttentionModulator) -> ReferenceModulator:
    return modulator_from_library(
        modulator.state_dict(),
        feature_count=COLUMNS,
        heads=modulator.options.heads,
        alpha_range=modulator.options.alpha_range,
        beta_range=modulator.options.beta_range,
    )


def features(groups: int = GROUPS) -> Tensor:
    return 3 * torch.randn(groups, COLUMNS, dtype=torch.float64)


@sizes
def test_values_and_gradients_equal_the_encoder_of_torch(options: dict[str, Any]) -> None:
    modulator = library(options, random=True)
    twin, inputs = twin_of(modulator), features()
    ours, theirs = modulator(inputs), twin(inputs)
    for factor, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(factor, expected, rtol=TOLERANCE, atol=TOLERANCE)
    with torch.no_grad():  # as in step()
        for factor, expected in zip(modulator(inputs), theirs, strict=True):
            torch.testing.assert_close(factor, expected, rtol=TOLERANCE, atol=TOLERANCE)

    slopes = torch.randn(4, GROUPS, dtype=torch.float64)
    names = [name for name, _ in modulator.named_parameters()]
    gradient = torch.autograd.grad((torch.stack(ours) * slopes).sum(), list(modulator.parameters()))
    expected = modulator_gradient((torch.stack(tuple(theirs)) * slopes).sum(), twin)
    assert set(names) == set(expected)
    for name, tensor in zip(names, gradient, strict=True):
        torch.testing.assert_close(tensor, expected[name], rtol=1e-11, atol=1e-11)


@sizes
def test_regulariser_equals_the_twin(options: dict[str, Any]) -> None:
    modulator = library(options, random=True)
    expected = regulariser(twin_of(modulator), 1.0, gate_sparsity=0.0)
    torch.testing.assert_close(modulator.regulariser(), expected, rtol=TOLERANCE, atol=0.0)


@sizes
def test_identity_birth_is_exactly_neutral(options: dict[str, Any]) -> None:
    modulator = library(options, init="identity")
    for scale, grad in itertools.product((0.0, 1.0, 1e6), (True, False)):
        with torch.set_grad_enabled(grad):
            modulation = modulator(scale * features())
        ones = torch.ones(GROUPS, dtype=torch.float64)
        assert torch.equal(modulation.alpha, ones)
        assert torch.equal(modulation.beta, ones)
        assert torch.equal(modulation.lambda1, ones / 2)
        assert torch.equal(modulation.lambda2, ones / 2)
    encoder = library(options)  # the encoder itself is born as ever
    assert torch.equal(modulator.encode(features() * 0 + 1), encoder.encode(features() * 0 + 1))


@sizes
def test_xavier_birth(options: dict[str, Any]) -> None:
    modulator = library(options)
    for name, weight in modulator.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif name.startswith("norm") or name == "gate_logits":
            assert torch.equal(weight, torch.ones_like(weight)), name
        elif name == "group_embedding":
            assert 0.05 < weight.std() < 0.2  # N(0, 0.1^2), 20 draws
        else:
            bound = math.sqrt(6 / sum(weight.shape[-2:]))
            assert 0.8 * bound < weight.abs().max() <= bound, name
    assert (modulator(features()).alpha != 1).all() == (modulator.options.alpha_range > 0)


def test_birth_follows_its_seed_alone() -> None:
    stream = torch.get_rng_state()
    first, second, other = (
        AttentionModulator(COLUMNS, GROUPS, Attention(init="xavier"), embedding_dim=4, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), stream)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        drawn = "proj_weight" in name or name.startswith(("linear1_w", "linear2_w", "output_w"))
        if drawn or name == "group_embedding":
            assert not torch.equal(weight, other.state_dict()[name]), name
    wide = AttentionModulator(
        COLUMNS,
        GROUPS,
        Attention(init="xavier"),
        embedding_dim=4,
        seed=3,
        dtype=torch.float64,
    )
    for name, weight in first.state_dict().items():  # the same numbers, rounded
        assert torch.equal(wide.state_dict()[name].float(), weight)


@pytest.mark.parametrize("alpha_range", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("beta_range", [0.0, 1.0])
def test_ranges_are_kept_whatever_the_weights(alpha_range: float, beta_range: float) -> None:
    modulator = library({"alpha_range": alpha_range, "beta_range": beta_range})
    with torch.no_grad():
        modulator.output_weight.mul_(1e4)
    modulation = modulator(features(50))
    for factor, width in ((modulation.alpha, alpha_range), (modulation.beta, beta_range)):
        assert (factor - 1).abs().max() <= width / 2
        assert (factor - 1).abs().max() >= 0.49 * width  # and they reach it
    for factor in (modulation.lambda1, modulation.lambda2):
        assert 0 <= factor.min() < 0.01
        assert 0.99 < factor.max() <= 1


def test_groups_are_a_set() -> None:
    """Without a group embedding, another order of the groups is another order of the factors."""
    modulator, inputs = library({"heads": 2}, random=True), features()
    order = torch.randperm(GROUPS)
    for factor, reordered in zip(modulator(inputs), modulator(inputs[order]), strict=True):
        torch.testing.assert_close(factor[order], reordered, rtol=TOLERANCE, atol=TOLERANCE)


def test_groups_attend_to_each_other() -> None:
    modulator, inputs = library({}, random=True), features()
    inputs.requires_grad_()
    modulator(inputs).alpha[0].backward()
    assert inputs.grad is not None
    assert inputs.grad.any(1).all()


@sizes
def test_gradient_flows_to_every_parameter(options: dict[str, Any]) -> None:
    if options.get("alpha_range") == 0.0:
        return
    modulator = library(options)
    modulation = modulator(features())
    (modulation.alpha * torch.randn(GROUPS).double()).sum().backward()
    for name, weight in modulator.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name


def test_the_bias_of_the_keys_has_no_gradient() -> None:
    """Not one of rounding either: with Adam it would grow until it is felt."""
    modulator = library({"layers": 3}, random=True)
    sum(factor.sum() for factor in modulator(torch.randn(GROUPS, COLUMNS).double())).backward()
    query, key, value = modulator.in_proj_bias.grad.chunk(3, dim=1)
    assert not key.any()
    assert query.any()
    assert value.any()

    meta = Hypergradient(lr=0.05)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = MetaAdamW(
        [{"params": [p]} for p in model.parameters()],
        modulator=Attention(init="xavier"),
        learning=meta,
    )
    for step in range(6):
        torch.manual_seed(step)
        model.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    query, key, value = optimizer.modulator.in_proj_bias.chunk(3, dim=1)
    assert not key.any()
    assert value.any()


LATER = ([""] * (GROUPS + 3), [*range(GROUPS), None, None, None])


def test_new_groups_leave_the_rows_that_are_there() -> None:
    modulator = library({"embedding_dim": 4}, random=True)
    before = {name: weight.detach().clone() for name, weight in modulator.named_parameters()}
    modulator.regroup(*LATER)
    after = dict(modulator.named_parameters())
    assert after["group_embedding"].shape == (GROUPS + 3, 4)
    assert torch.equal(after["group_embedding"][:GROUPS], before.pop("group_embedding"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    new = after["group_embedding"][GROUPS:]
    assert new.abs().min() > 0
    assert new.abs().max() < 0.5  # five deviations
    at_once = AttentionModulator(
        COLUMNS, GROUPS + 3, modulator.options, embedding_dim=4, dtype=torch.float64
    ).group_embedding
    assert torch.equal(new, at_once[GROUPS:])  # no matter when a group comes


def test_new_groups_without_an_embedding_change_nothing() -> None:
    modulator, inputs = library({}, random=True), features(GROUPS + 3)
    before = modulator(inputs).alpha
    modulator.regroup(*LATER)
    assert torch.equal(modulator(inputs).alpha, before)


@pytest.mark.parametrize("mode", ["lookahead", "online"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_new_param_group_is_a_new_token(mode: Any, kind: Any) -> None:
    """What was learned stays, and learning goes on with the larger embedding."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 2)).double()

    def train() -> None:
        optimizer.zero_grad()
        loss(model, torch.randn(5, 3).double()).backward()
        optimizer.step()
        if mode == "lookahead":
            batches = (torch.randn(5, 3).double() for _ in range(3))
            assert optimizer.update_attention(model, loss, *batches).applied

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    optimizer = MetaAdamW(
        model[0].parameters(),
        modulator=Attention(features="enhanced", init="xavier"),
        learning=learning_of(mode, optimizer=kind, lr=0.01),
    )
    optimizer.add_param_group({"params": list(model[2].parameters())})
    for _ in range(3):
        train()
    before = {n: w.clone() for n, w in optimizer.modulator.state_dict().items()}
    optimizer.add_param_group({"params": list(model[3].parameters()), "name": "late"})
    after = optimizer.modulator.state_dict()
    assert torch.equal(after["group_embedding"][:2], before.pop("group_embedding"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    start = after["group_embedding"].clone()
    for _ in range(3):
        train()
    moved = optimizer.modulator.state_dict()["group_embedding"] != start
    assert moved.any(1).tolist() == [True, True, True]
    assert optimizer.modulation.alpha.shape == (3,)


def test_wrong_number_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features must have shape \[G, 6\], got \(5, 7\)"):
        library({})(torch.zeros(5, 7, dtype=torch.float64))


def test_modulation_names_its_factors() -> None:
    modulation = library({})(features())
    assert isinstance(modulation, Modulation)
    assert modulation._fields == ("alpha", "beta", "lambda1", "lambda2")
