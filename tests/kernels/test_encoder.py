"""The encoder kernel against the plain encoder, which is checked against torch's own layers."""

from __future__ import annotations

import pytest
import torch

from metaadamw import Attention
from metaadamw.modulators.attention import AttentionModulator
from metaadamw.modulators.encoder import ENCODER_TENSORS, encoder_layer
from metaadamw.modulators.encoder_kernel import has_encoder

# Rounding of the same sums in another order, through up to eight layers.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}


def a_modulator(groups, features, layers, heads, hidden, dtype, seed=0):
    torch.manual_seed(seed)
    config = Attention(layers=layers, heads=heads, hidden_dim=hidden, init="xavier")
    modulator = AttentionModulator(features, groups, config, dtype=dtype)
    with torch.no_grad():
        for p in modulator.parameters():
            p += 0.3 * torch.randn_like(p)
    return modulator, torch.randn(groups, features, dtype=dtype, requires_grad=True)


SHAPES = [(1, 3, 1, 1, 1), (14, 7, 2, 6, 16), (3, 7, 8, 2, 64), (31, 5, 4, 1, 9), (128, 4, 1, 4, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_encoder_and_its_gradient(shape, dtype, seed):
    modulator, x = a_modulator(*shape, dtype, seed)
    assert has_encoder(x)
    inputs = [x, *modulator.encoder_tensors()]
    plain, ours = modulator.encode(x), modulator.encode(x, once_differentiable=True)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(ours, plain, **close)
    with torch.no_grad():
        assert torch.equal(modulator.encode(x), ours)
    slopes = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, inputs, slopes)
    found = torch.autograd.grad(ours, inputs, slopes)
    for name, a, b in zip(("features", *ENCODER_TENSORS), found, expected, strict=True):
        scale = b.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(a / scale, b / scale, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_gradient_by_central_differences():
    modulator, x = a_modulator(4, 5, 2, 3, 6, torch.float64)

    def encode(x, *_):
        return modulator.encode(x, once_differentiable=True)

    assert torch.autograd.gradcheck(encode, (x, *modulator.encoder_tensors()))


def test_the_bias_of_the_keys_stays_at_rest():
    modulator, x = a_modulator(5, 6, 2, 2, 8, torch.float32)
    ours = modulator.encode(x, once_differentiable=True)
    (slope,) = torch.autograd.grad(ours.square().sum(), modulator.in_proj_bias)
    query, key, value = slope.chunk(3, dim=1)
    assert key.eq(0).all()
    assert query.ne(0).any()
    assert value.ne(0).any()


def test_not_a_number_is_passed_on():
    modulator, x = a_modulator(4, 6, 2, 2, 8, torch.float32)
    with torch.no_grad():
        modulator.linear1_weight[0, 3, 2] = float("nan")
        assert modulator.encode(x).isnan().any()


def test_many_groups_are_left_to_torch():
    modulator, x = a_modulator(200, 6, 2, 2, 8, torch.float64)
    assert not has_encoder(x)
    with torch.no_grad():
        found, expected = modulator.encode(x), modulator.encode(x[:1])
        weights = [t.detach() for t in modulator.encoder_tensors()]
        for layer in zip(*(w.unbind(0) for w in weights), strict=True):
            x = encoder_layer(x, layer, 2)
    assert expected.shape == (1, 6)
    torch.testing.assert_close(found, x)


def test_no_second_derivative_in_silence():
    modulator, x = a_modulator(3, 4, 1, 2, 4, torch.float64)
    ours = modulator.encode(x, once_differentiable=True).square().sum()
    (slope,) = torch.autograd.grad(ours, x, create_graph=True)
    with pytest.raises(RuntimeError, match="graph"):
        torch.autograd.grad(slope.sum(), x)
