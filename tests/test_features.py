"""Sec. 3.3: every feature set against the twin's loops, and finite whatever comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metaadamw import Attention, Factors, MetaAdamW
from metaadamw.statistics.features import FEATURE_TABLES, feature_table, needed_products
from tests.reference.features import feature_table as reference_table
from tests.reference.features import group_features as reference_features
from tests.reference.state import groups_from_optimizer, state_from_optimizer

FEATURES = ["basic", "basic_plus", "enhanced", "norm_basic", "norm_basic_plus", "scale_free"]
# Sums of at most 30 squares in float64, and a division by the spread across groups.
TOLERANCE = 1e-12


def optimizer_of(
    shapes: list[list[tuple[int, ...]]], dtype: torch.dtype = torch.float64, **config: Any
) -> tuple[MetaAdamW, list[tuple[str, nn.Parameter]]]:
    """An optimizer over random parameters in the given groups; every third is called a bias."""
    total_steps = config.pop("total_steps", 50)
    named: list[tuple[str, nn.Parameter]] = []
    groups: list[dict[str, Any]] = []
    for index, members in enumerate(shapes):
        for shape in members:
            name = f"tensor{len(named)}.{'bias' if len(named) % 3 == 0 else 'weight'}"
            named.append((name, nn.Parameter(torch.randn(shape).to(dtype))))
        params = named[-len(members) :]
        groups.append({"params": params, "depth": index / len(shapes), "betas": (0.8, 0.95)})
    modulator = config.pop("kind", None) or Attention(**{"init": "xavier", **config})
    optimizer = MetaAdamW(
        groups, modulator=modulator, total_steps=total_steps, learning="lookahead"
    )
    return optimizer, named


def reference_of(
    optimizer: MetaAdamW, named: list[tuple[str, nn.Parameter]], **options: Any
) -> Tensor:
    state = state_from_optimizer(optimizer, named)
    return reference_features(
        options.pop("features"),
        groups_from_optimizer(optimizer, named),
        dict(named),
        {name: p.grad for name, p in named},
        state.exp_avg,
        state.exp_avg_sq,
        step=optimizer.steps + 1,
        **options,
    )


def set_gradients(named: list[tuple[str, nn.Parameter]], kinds: list[str]) -> None:
    for (_, param), kind in zip(named, kinds, strict=True):
        grad = torch.randn_like(param)
        if kind == "sparse":
            grad = grad * (torch.rand_like(param) < 0.5)
        param.grad = None if kind == "none" else torch.zeros_like(param) if kind == "zero" else grad


# No tensor of a single entry: its cosine is +-1 but for rounding; see the test of spread below.
SHAPES = st.lists(
    st.lists(st.sampled_from([(2,), (7,), (3, 4), (2, 1, 5), (0, 3)]), min_size=1, max_size=3),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("features", FEATURES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=SHAPES,
    second_moment_norm=st.booleans(),
    time_step=st.booleans(),
    feature_gating=st.booleans(),
    total_steps=st.sampled_from([None, 50]),
    steps=st.integers(0, 4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_features_equal_the_twin(
    features: str,
    shapes: list[list[tuple[int, ...]]],
    second_moment_norm: bool,
    time_step: bool,
    feature_gating: bool,
    total_steps: int | None,
    steps: int,
    seed: int,
    data: st.DataObject,
) -> None:
    torch.manual_seed(seed)
    options = {"features": features, "second_moment_norm": second_moment_norm}
    options |= {"time_step": time_step, "total_steps": total_steps}
    optimizer, named = optimizer_of(shapes, feature_gating=feature_gating, **options)
    kinds = st.lists(
        st.sampled_from(["none", "zero", "sparse", "normal"]),
        min_size=len(named),
        max_size=len(named),
    )
    for _ in range(steps):
        set_gradients(named, data.draw(kinds))
        optimizer.step()
    set_gradients(named, data.draw(kinds))
    expected = reference_of(optimizer, named, **options)
    actual = optimizer.group_features()
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)

    given_grads = [p.grad for _, p in named]
    for _, param in named:
        param.grad = None
    assert torch.equal(optimizer.group_features(given_grads), actual)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("second_moment_norm", [False, True])
@pytest.mark.parametrize("time_step", [False, True])
@pytest.mark.parametrize("feature_gating", [False, True])
def test_one_table_says_names_order_and_dimension(
    features: str, second_moment_norm: bool, time_step: bool, feature_gating: bool
) -> None:
    options: dict[str, Any] = {"second_moment_norm": second_moment_norm, "time_step": time_step}
    config = Attention(features=features, feature_gating=feature_gating, **options)
    table = config.table
    optimizer, named = optimizer_of(
        [[(2, 3)], [(4,), (3,)]], features=features, feature_gating=feature_gating, **options
    )
    rows = reference_table(
        features,
        groups_from_optimizer(optimizer, named),
        dict(named),
        {},
        {},
        {},
        step=1,
        **options,
    )
    assert [feature.name for feature in table] == list(rows[0])
    assert optimizer.feature_names == list(rows[0])
    matrix = optimizer.group_features()
    assert matrix.shape == (2, len(table))
    assert optimizer.modulator(matrix).alpha.shape == (2,)
    if feature_gating:
        assert optimizer.modulator.state_dict()["gate_logits"].shape == (len(table),)


@pytest.mark.parametrize("features", FEATURE_TABLES)
def test_the_table_explains_every_column(features: str) -> None:
    table = FEATURE_TABLES[features]
    names = [feature.name for feature in table]
    assert len(set(names)) == len(names)
    assert all(feature.formula for feature in table)
    normalised = features.startswith("norm_")
    for feature in table:
        if feature.name == "time_step":
            assert not feature.standardise
        elif normalised:
            assert feature.standardise
    assert normalised or features == "scale_free" or not any(f.standardise for f in table)


NOTHING = {
    "single tensor": [[(3, 2)]],
    "single group": [[(3, 2), (4,)]],
    "zero-size": [[(0, 3)], [(2,)]],
    "only zero-size": [[(0,)]],
    "0-d": [[()], [()]],
    "many groups": [[(2,)]] * 5,
}


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("shapes", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("kind", ["none", "zero", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finite_whatever_comes(
    features: str, shapes: list[list[tuple[int, ...]]], kind: str, dtype: torch.dtype
) -> None:
    optimizer, named = optimizer_of(shapes, dtype, features=features)
    for steps in range(3):
        set_gradients(named, [kind] * len(named))
        matrix = optimizer.group_features()
        assert torch.isfinite(matrix).all(), steps
        optimizer.step()
    with torch.no_grad():
        for _, param in named:
            param.zero_()
    assert torch.isfinite(optimizer.group_features()).all()


def test_a_group_without_tensors() -> None:
    param = nn.Parameter(torch.ones(2))
    groups = [{"params": []}, {"params": [param]}]
    for features in FEATURES:
        optimizer = MetaAdamW(groups, modulator=Attention(features=features), learning="lookahead")
        param.grad = torch.ones(2)
        assert torch.isfinite(optimizer.group_features()).all()
        optimizer.step()


@pytest.mark.parametrize("features", ["norm_basic", "norm_basic_plus", "scale_free"])
def test_standardised_columns(features: str) -> None:
    """Mean 0 and deviation 1 across groups, to rounding; all 0 for a single group."""
    standardised = [f.standardise for f in feature_table(features)]
    for shapes in ([[(3, 2), (4,)], [(5,), (2, 2)], [(7,), (3,)]], [[(3, 2), (4,)]]):
        optimizer, named = optimizer_of(shapes, features=features)
        for _ in range(2):
            set_gradients(named, ["normal"] * len(named))
            optimizer.step()
        set_gradients(named, ["normal"] * len(named))
        columns = optimizer.group_features()[:, standardised]
        if len(shapes) == 1:
            assert not columns.any()
            continue
        assert columns.mean(0).abs().max() < 1e-14
        assert (columns.square().mean(0) - 1).abs().max() < 1e-12


def test_a_column_whose_spread_is_rounding_is_zero() -> None:
    """The cosine of numbers is 1 but for the last bit, which must not be blown up to +-1."""
    optimizer, named = optimizer_of([[()], [()], [()]], features="norm_basic")
    for _ in range(3):
        for _, param in named:
            param.grad = torch.rand_like(param) + 0.1
        optimizer.step()
    assert not optimizer.group_features()[:, optimizer.feature_names.index("cosine")].any()


def test_scale_free_features_do_not_see_the_scale_of_the_loss() -> None:
    """With every gradient times 1000 from the start only a common shift changes: standardised away.

    A logarithm around 1 has an error of 1e-16, the spread is above 0.01: 1e-12.
    """
    matrices = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(5)
        optimizer, named = optimizer_of(
            [[(3, 2), (4,)], [(5,)], [(7, 2)]], features="scale_free", alpha_range=0.0
        )
        for group in optimizer.param_groups:
            group["eps"] = 0.0  # AdamW itself sees the scale through eps
        for _ in range(4):
            set_gradients(named, ["normal"] * len(named))
            for _, param in named:
                assert param.grad is not None
                param.grad *= scale
            matrices.append(optimizer.group_features())
            optimizer.step()
    for step in range(4):
        torch.testing.assert_close(matrices[step], matrices[step + 4], rtol=1e-12, atol=1e-12)


def test_depth_comes_from_the_names_where_it_is_not_given() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Linear(2, 1))
    groups = [{"params": list(model[i].named_parameters(prefix=str(i)))} for i in (0, 2, 3)]
    optimizer = MetaAdamW(groups, modulator=Attention(features="enhanced"), learning="lookahead")
    depth = optimizer.group_features()[:, optimizer.feature_names.index("depth")]
    assert depth.tolist() == pytest.approx([0.0, 2 / 3, 1.0])
    unnamed = MetaAdamW(
        model.parameters(), modulator=Attention(features="enhanced"), learning="lookahead"
    )
    assert unnamed.group_features()[0, unnamed.feature_names.index("depth")] == 0.5


@pytest.mark.parametrize("features", FEATURES)
def test_a_non_finite_gradient_does_not_reach_the_modulator(features: str) -> None:
    """It sees the last finite features once more, and the step is counted."""
    optimizer, named = optimizer_of([[(3, 2)], [(4,), (2,)]], features=features)
    set_gradients(named, ["normal"] * 3)
    optimizer.step()
    assert optimizer.features is not None
    held, alpha = optimizer.features.clone(), optimizer.modulation.alpha.clone()
    set_gradients(named, ["normal"] * 3)
    assert named[1][1].grad is not None
    named[1][1].grad[0] = float("nan")
    optimizer.step()
    assert torch.equal(optimizer.features, held)
    assert torch.equal(optimizer.modulation.alpha, alpha)
    assert optimizer.metrics()["meta/skipped"] == 1


@pytest.mark.parametrize("features", FEATURES)
def test_single_precision_is_near_the_twin(features: str) -> None:
    """Rounding of 6e-8 in a norm, over a spread of 0.1 where standardised: 1e-5."""
    shapes: list[list[tuple[int, ...]]] = [[(30, 20), (40,)], [(5,)], [(7, 200)]]
    optimizer, named = optimizer_of(shapes, torch.float32, features=features)
    for _ in range(3):
        set_gradients(named, ["normal"] * len(named))
        optimizer.step()
    set_gradients(named, ["sparse"] * len(named))
    expected = reference_of(optimizer, named, features=features, total_steps=50)
    assert optimizer.group_features().dtype == torch.float32
    torch.testing.assert_close(optimizer.group_features().double(), expected, rtol=1e-5, atol=1e-5)


def write_in_place(param: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        param.copy_(value)


def write_to_data(param: nn.Parameter, value: Tensor) -> None:
    param.data.copy_(value)  # weight clipping and averaging are often written so


def exchange_data(param: nn.Parameter, value: Tensor) -> None:
    param.data = value


@pytest.mark.parametrize("write", [write_in_place, write_to_data, exchange_data])
def test_features_see_what_was_written_from_outside(write: Callable[..., None]) -> None:
    optimizer, named = optimizer_of([[(3, 2)], [(4,), (2,)]], features="basic")
    for _ in range(3):
        set_gradients(named, ["normal"] * 3)
        optimizer.step()
        write(named[0][1], torch.randn(3, 2).double())
        set_gradients(named, ["normal"] * 3)
        expected = reference_of(optimizer, named, features="basic", total_steps=50)
        torch.testing.assert_close(
            optimizer.group_features(), expected, rtol=TOLERANCE, atol=TOLERANCE
        )
        optimizer.step()
        torch.testing.assert_close(optimizer.features, expected, rtol=TOLERANCE, atol=TOLERANCE)
        write(named[2][1], torch.randn(2).double())


def test_group_features_refuses_gradients_that_do_not_fit() -> None:
    optimizer, _ = optimizer_of([[(3, 2)], [(4,)]])
    with pytest.raises(ValueError, match="one entry for each of 2 parameters, got 1"):
        optimizer.group_features([None])
    with pytest.raises(ValueError, match=r"grads\[1\] must have shape \(4,\), got \(3,\)"):
        optimizer.group_features([None, torch.ones(3)])


def test_without_an_encoder_there_are_none() -> None:
    """Nobody would read them: no column, no statistic, and nothing to wait for."""
    config = Factors(alpha_range=1.0, scale="linear", update_every=1)
    assert config.table == ()
    assert needed_products(()) == []
    optimizer, named = optimizer_of([[(3, 2)], [(4,)]], kind=config)
    assert optimizer.feature_names == []
    set_gradients(named, ["normal"] * len(named))
    assert optimizer.group_features().shape == (2, 0)
    optimizer.step()
    assert optimizer.features is not None
    assert optimizer.features.shape == (2, 0)
