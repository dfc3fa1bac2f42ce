"""Bad input is refused where it is given, says what is allowed, and changes nothing.

One table for each place where input enters: the call, the exception, words of its message.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from metaadamw import (
    Attention,
    Hypergradient,
    LookAhead,
    MetaAdamW,
    Off,
    Schedule,
    Windows,
    fine_grained_groups,
)
from tests.training import (
    Net,
    assert_same,
    backward,
    batch,
    full_snapshot,
    loss_fn,
    make,
    meta_update,
    snapshot,
    train,
)

Case = tuple[Callable, type[Exception], str]
nan, inf = math.nan, math.inf


def construct(**options) -> Callable:
    return lambda model: MetaAdamW(model.parameters(), **options)


def grouped(**options) -> Callable:
    """One good group and one with ``options``."""

    def call(model):
        first, *rest = model.parameters()
        return MetaAdamW([{"params": [first]}, {"params": rest, **options}], learning="lookahead")

    return call


def out_of_range(make_call: Callable, where: str) -> dict[str, Case]:
    """The hyperparameters, given to the optimizer or to a group."""
    values = {
        "lr": ([-1e-3, nan, inf], ["0.1", None, True, [0.1]], r"\[0"),
        "eps": ([-1e-8, nan, inf], ["0", None, True], r"\[0"),
        "weight_decay": ([-1.0, nan, inf], ["0", None, torch.ones(2)], r"\[0"),
        "betas": (
            [(0.9, 1.0), (-0.1, 0.9), (nan, 0.9), (0.9,), (0.9, 0.9, 0.9), 0.9, None, "ab"],
            [("0.9", 0.9), (True, 0.9)],
            r"\[0",
        ),
    }
    cases = {}
    for name, (wrong_values, wrong_types, allowed) in values.items():
        for value in wrong_values:
            cases[f"{name}={value!r}"] = (make_call(**{name: value}), ValueError)
        for value in wrong_types:
            cases[f"{name}={value!r}"] = (make_call(**{name: value}), TypeError)
        for key in cases:
            if len(cases[key]) == 2:
                cases[key] = (*cases[key], rf"{where}{name}.*{allowed}.*got")
    cases["lr of two elements"] = (make_call(lr=torch.ones(2)), ValueError, rf"{where}lr.*\(2,\)")
    cases["lr tensor"] = (make_call(lr=torch.tensor(-1.0)), ValueError, rf"{where}lr.*-1\.0")
    cases["lr tensor nan"] = (make_call(lr=torch.tensor(nan)), ValueError, rf"{where}lr.*nan")
    return cases


CONSTRUCTION: dict[str, Case] = {
    **out_of_range(construct, ""),
    **{f"group {k}": v for k, v in out_of_range(grouped, r"param_groups\[1\]\.").items()},
    "no params": (lambda m: MetaAdamW(None, learning="lookahead"), TypeError, "params.*None"),
    "a number": (lambda m: MetaAdamW(3, learning="lookahead"), TypeError, "params.*int|params.*3"),
    "a tensor": (
        lambda m: MetaAdamW(m.head.weight, learning="lookahead"),
        TypeError,
        "params.*iterable",
    ),
    "a module": (lambda m: MetaAdamW(m, learning="lookahead"), TypeError, "params"),
    "a string": (lambda m: MetaAdamW("abc", learning="lookahead"), TypeError, "str"),
    "numbers": (lambda m: MetaAdamW([1.0], learning="lookahead"), TypeError, "float"),
    "empty": (lambda m: MetaAdamW([], learning="lookahead"), ValueError, "empty parameter list"),
    "empty generator": (
        lambda m: MetaAdamW(iter(()), learning="lookahead"),
        ValueError,
        "empty parameter list",
    ),
    "empty groups": (
        lambda m: MetaAdamW([{"params": []}], learning="lookahead"),
        ValueError,
        "params",
    ),
    "a set": (
        lambda m: MetaAdamW([{"params": set(m.parameters())}], learning="lookahead"),
        TypeError,
        "set",
    ),
    "non-leaf": (
        lambda m: MetaAdamW([m.head.weight * 2], learning="lookahead"),
        ValueError,
        "leaf",
    ),
    "sparse parameter": (
        lambda m: MetaAdamW([torch.eye(2).to_sparse().requires_grad_()], learning="lookahead"),
        ValueError,
        r"param_groups\[0\]\.params.*dense.*sparse",
    ),
    "complex, fused": (
        lambda m: MetaAdamW([nn.Parameter(torch.ones(2) * 1j)], fused=True, learning="lookahead"),
        ValueError,
        "params.*fused=True.*complex64",
    ),
    "twice in a group": (
        lambda m: MetaAdamW([m.head.bias] * 2, learning="lookahead"),
        ValueError,
        "params",
    ),
    "in two groups": (
        lambda m: MetaAdamW(
            [{"params": [m.head.bias]}, {"params": [m.head.bias]}], learning="lookahead"
        ),
        ValueError,
        "more than one parameter group",
    ),
    "unnamed among named": (
        lambda m: MetaAdamW([*m.head.named_parameters(), m.norm.weight], learning="lookahead"),
        (TypeError, ValueError),
        "name",
    ),
    "unknown keyword": (construct(learning_rate=1.0), TypeError, "learning_rate"),
    "torch's keyword that we do not have": (construct(amsgrad=True), TypeError, "amsgrad"),
    "positional configuration": (
        lambda m: MetaAdamW(
            m.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.0, Attention(), learning="lookahead"
        ),
        TypeError,
        "positional",
    ),
    "misspelled key": (grouped(weight_decy=1.0), ValueError, "did you mean 'weight_decay'"),
    "group without params": (
        lambda m: MetaAdamW([{"lr": 1.0}], learning="lookahead"),
        ValueError,
        r"param_groups\[0\]\.params",
    ),
    "own foreach": (grouped(foreach=True), ValueError, r"param_groups\[1\]\.foreach.*None.*True"),
    "own maximize": (grouped(maximize=True), ValueError, r"param_groups\[1\]\.maximize.*False"),
    "two groups, one name": (
        lambda m: MetaAdamW(
            [{"params": [p], "name": "x"} for p in (m.head.weight, m.head.bias)],
            learning="lookahead",
        ),
        ValueError,
        r"param_groups\[1\]\.name.*unique.*'x'",
    ),
    "modulator": (construct(modulator="basic"), ValueError, "modulator.*attention.*'basic'"),
    "learning": (construct(learning={"mode": "off"}), ValueError, "learning.*'kind'.*'off'"),
    "swapped": (construct(modulator=LookAhead()), TypeError, "modulator.*LookAhead"),
    "total_steps": (construct(total_steps=0), ValueError, "total_steps.*>= 1.*0"),
    "total_steps type": (construct(total_steps=10.0), TypeError, "total_steps.*10.0"),
    "seed": (construct(seed=-1), ValueError, "seed.*>= 0.*-1"),
    "seed type": (construct(seed=None), TypeError, "seed.*None"),
    "maximize": (construct(maximize=1), TypeError, "maximize.*True or False.*1"),
    "capturable": (construct(capturable="yes"), TypeError, "capturable.*'yes'"),
    "foreach": (construct(foreach=0), TypeError, "foreach.*0"),
    "fused": (construct(fused="no"), TypeError, "fused.*'no'"),
    "eps_inside_sqrt": (construct(eps_inside_sqrt=None), TypeError, "eps_inside_sqrt.*None"),
    "foreach and fused": (construct(foreach=True, fused=True), ValueError, "foreach.*fused"),
    "printed form, fused": (
        construct(fused=True, eps_inside_sqrt=True),
        ValueError,
        "eps_inside_sqrt.*fused",
    ),
    "schedule of other groups": (
        construct(modulator=Schedule(("a",), torch.ones(2, 1), torch.ones(2, 1))),
        ValueError,
        r"'a'.*'group0'",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), CONSTRUCTION.values(), ids=CONSTRUCTION)
def test_construction(call, error, words):
    model = Net()
    backward(model, 0)
    before = snapshot(model)
    with pytest.raises(error, match=words):
        call(model)
    assert_same(snapshot(model), before)


def prepared(**meta) -> tuple[Net, MetaAdamW]:
    model, optimizer = make(
        modulator=Attention(init="xavier", layers=1), learning=LookAhead(every=1, **meta)
    )
    train(model, optimizer, range(2))
    backward(model, 2)
    return model, optimizer


def assert_refused(call: Callable, error, words: str, **meta) -> None:
    model, optimizer = prepared(**meta)
    before = full_snapshot(model, optimizer)
    groups = optimizer.param_groups
    with pytest.raises(error, match=words):
        call(model, optimizer)
    assert optimizer.param_groups is groups
    assert_same(full_snapshot(model, optimizer), before)
    train(model, optimizer, [3])  # and it goes on
    assert meta_update(model, optimizer).applied


def adding(**group) -> Callable:
    return lambda m, o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))], **group})


ADDING: dict[str, Case] = {
    **out_of_range(adding, r"param_groups\[\d+\]\."),
    "no dict": (lambda m, o: o.add_param_group([1]), TypeError, "dict"),
    "no params": (lambda m, o: o.add_param_group({"lr": 1.0}), ValueError, "params"),
    "taken name": (adding(name="layer_norm.middle.bias"), ValueError, "name.*layer_norm"),
    "own path": (adding(fused=True), ValueError, "fused.*None.*True"),
    "non-leaf": (adding(params=Net().head.bias * 2), ValueError, "leaf"),
    "of another group": (
        lambda m, o: o.add_param_group({"params": [("b", m.head.bias)]}),
        ValueError,
        "more than one parameter group",
    ),
    "numbers": (adding(params=[1.0]), TypeError, "float"),
}


@pytest.mark.parametrize(("call", "error", "words"), ADDING.values(), ids=ADDING)
def test_adding_groups(call, error, words):
    assert_refused(call, error, words)


def updating(**changes) -> Callable:
    """``update_attention`` with good arguments except for ``changes``."""

    def call(model, optimizer):
        batches = {name: batch(i) for i, name in enumerate(("batch1", "batch2", "val_batch"))}
        return optimizer.update_attention(
            **{"model": model, "loss_fn": loss_fn, **batches, **changes}
        )

    return call


NEEDED = {
    "combined": ("batch1", "batch2", "val_batch"),
    "gradient_alignment": ("batch1", "batch2"),
    "loss_decrease": ("batch1", "val_batch"),
    "generalization_gap": ("batch1", "val_batch"),
}


@pytest.mark.parametrize(
    ("objective", "missing"), [(o, name) for o, names in NEEDED.items() for name in names]
)
def test_missing_batches(objective, missing):
    meta = {"objective": objective, "gap_at": "theta_prime"}
    assert_refused(
        updating(**{missing: None}), ValueError, rf"{objective}.*missing: {missing}$", **meta
    )


@pytest.mark.parametrize("objective", NEEDED)
def test_no_batch_is_asked_for_that_is_not_needed(objective):
    model, optimizer = prepared(objective=objective, gap_at="theta_prime")
    unused = {"batch1", "batch2", "val_batch"} - set(NEEDED[objective])
    assert updating(**dict.fromkeys(unused))(model, optimizer).applied


def sparse_model():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    return model, MetaAdamW(model.parameters(), learning="lookahead")


UPDATING: dict[str, Case] = {
    "no model": (updating(model=None), TypeError, "model.*Module.*None"),
    "a function as model": (updating(model=lambda x: x), TypeError, "model.*Module.*function"),
    "no loss": (updating(loss_fn=None), TypeError, "loss_fn.*callable.*None"),
    "another model": (updating(model=Net()), ValueError, "loss_fn.*parameters.*model"),
    "unknown keyword": (updating(val_batch2=1), TypeError, "val_batch2"),
    "gradients": (
        lambda m, o: o.group_features([None]),
        ValueError,
        r"grads.*one entry for each of \d+.*1",
    ),
    "gradient shapes": (
        lambda m, o: o.group_features([torch.zeros(9) for _ in m.parameters()]),
        ValueError,
        r"grads\[0\].*\(7, 4\).*\(9,\)",
    ),
    "features": (lambda m, o: o.modulator(torch.zeros(3)), ValueError, r"features.*\[G, 6\]"),
}


@pytest.mark.parametrize(("call", "error", "words"), UPDATING.values(), ids=UPDATING)
def test_meta_updates(call, error, words):
    assert_refused(call, error, words)


@pytest.mark.parametrize("kind", [Hypergradient, Windows, Off])
def test_meta_updates_by_other_ways_of_learning(kind):
    model, optimizer = make(learning=kind())
    before = full_snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match=f"learning='lookahead', got {kind.__name__}"):
        meta_update(model, optimizer)
    assert_same(full_snapshot(model, optimizer), before)


def test_sparse_gradients_of_a_step():
    model, optimizer = sparse_model()
    model(torch.tensor([1, 2])).sum().backward()
    before = snapshot(model[1], optimizer)
    weight = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"dense.*\(5, 3\).*sparse=False"):
        optimizer.step()
    assert_same(snapshot(model[1], optimizer), before)
    assert torch.equal(model[0].weight, weight)


def test_sparse_gradients_of_a_meta_update():
    model, optimizer = sparse_model()
    before = full_snapshot(model, optimizer)

    def loss(model, data):
        return model(data).square().mean()

    with pytest.raises(ValueError, match=r"dense.*sparse=False"):
        optimizer.update_attention(model, loss, *[torch.tensor([1, 2])] * 3)
    assert_same(full_snapshot(model, optimizer), before)


SCHEDULES = {
    "one-dimensional": ((torch.ones(2), torch.ones(2)), "alpha"),
    "other shapes": ((torch.ones(3, 2), torch.ones(2, 2)), r"\(3, 2\).*\(2, 2\)"),
    "other groups": ((torch.ones(3, 1), torch.ones(3, 1)), r"\[T, 2\]"),
    "empty": ((torch.ones(0, 2), torch.ones(0, 2)), "T >= 1"),
}


@pytest.mark.parametrize(("tensors", "words"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(tensors, words):
    with pytest.raises(ValueError, match=words):
        Schedule(("a", "b"), *tensors)


def test_default_names_avoid_taken_ones():
    a, b = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = MetaAdamW(
        [{"params": [a], "name": "group1"}, {"params": [b]}], learning="lookahead"
    )
    assert len(set(optimizer.group_names)) == 2


def test_heads_that_do_not_divide_are_padded():
    """Not an error: the features are filled up with zeros to a multiple of the heads."""
    model = Net()
    for features, heads in itertools.product(("basic", "enhanced", "basic_plus"), (4, 5, 7)):
        config = Attention(features=features, heads=heads, init="xavier")
        optimizer = MetaAdamW(fine_grained_groups(model), modulator=config, learning="lookahead")
        train(model, optimizer, [0])
        assert torch.isfinite(optimizer.modulation.alpha).all()
