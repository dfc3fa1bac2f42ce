"""Every field is validated where it is given; the presets are Tables 1 and 4 of the paper."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
from torch import nn

from metaadamw import (
    Attention,
    Factors,
    Hypergradient,
    LookAhead,
    MetaAdamW,
    Off,
    PriorityUncertaintyWeighting,
    TwoHorizons,
    Windows,
    fine_grained_groups,
    paper_preset,
)
from metaadamw.choices import chosen

NOT_NUMBERS = ["1", None, True, [1.0], 1j]
NOT_FINITE = [math.nan, math.inf, -math.inf]
NOT_COUNTS = ["1", None, True, 1.0]
NOT_FLAGS = [0, 1, "True", None]

# option, values of the wrong type, values out of range, what the message says is allowed
COMMON = [
    ("mean_preserving", NOT_FLAGS, [], "True or False"),
    ("update_every", NOT_COUNTS, [0, -1], ">= 1"),
    ("scale", [], ["exp", None], "linear"),
]
ATTENTION = [
    *COMMON,
    ("features", [], ["basics", "", None, 3, ("basic",)], "basic_plus"),
    ("second_moment_norm", NOT_FLAGS, [], "True or False"),
    ("time_step", NOT_FLAGS, [], "True or False"),
    ("feature_gating", NOT_FLAGS, [], "True or False"),
    ("frozen_gates", NOT_FLAGS, [], "True or False"),
    ("layers", NOT_COUNTS, [0, -1], ">= 1"),
    ("heads", NOT_COUNTS, [0, -1], ">= 1"),
    ("hidden_dim", NOT_COUNTS, [0, -1], ">= 1"),
    ("alpha_start", NOT_NUMBERS, [0.4, 1.6, *NOT_FINITE], "[0.5, 1.5]"),
    ("alpha_range", NOT_NUMBERS, [-0.1, 2.1, *NOT_FINITE], "[0.0, 2.0]"),
    ("beta_range", NOT_NUMBERS, [-0.1, 2.1, *NOT_FINITE], "[0.0, 2.0]"),
    ("init", [], ["zeros", None, 0], "identity"),
    ("gate_sparsity", ["0", True], [-1.0, *NOT_FINITE], "[0.0, inf)"),
]
FACTORS = [
    *COMMON,
    ("alpha_start", NOT_NUMBERS, [0.01, 55.0, *NOT_FINITE], "54.59"),
    ("alpha_range", NOT_NUMBERS, [-0.1, *NOT_FINITE], "[0.0, inf)"),
    ("beta_range", NOT_NUMBERS, [-0.1, *NOT_FINITE], "[0.0, inf)"),
]
POSITIVE_TRIPLE = [(1.0, 1.0), (1.0,) * 4, (), (0.0, 1, 1), (1, -1, 1), (1, 1, math.nan)]
LEARNS = [
    ("optimizer", [], ["adamw", 3, True], "sgd"),
    ("lr", ["1", True, [1.0]], [-1e-4, *NOT_FINITE], "[0.0, inf)"),
    ("weight_decay", NOT_NUMBERS, [-1e-4, *NOT_FINITE], "[0.0, inf)"),
    ("warmup_steps", NOT_COUNTS, [-1], ">= 0"),
]
LOOK_AHEAD = [
    *LEARNS,
    ("objective", [], ["all", None, ("loss_decrease",)], "loss_decrease"),
    ("priorities", [1.0, "111", None, (1.0, 1.0, "1")], POSITIVE_TRIPLE, ""),
    ("weighting", [], ["sum", None], "fixed"),
    ("fixed_weights", [1.0, None, (1.0, 1.0, None)], [(1.0, 1.0), (1, -1, 1)], ""),
    ("every", NOT_COUNTS, [0, -5], ">= 1"),
    ("hvp", [], ["jvp", None], "finite_difference"),
    ("gap_at", [], ["theta'", None], "theta_prime"),
    ("log_variance_bound", ["3", True], [0.0, -1.0, *NOT_FINITE], "(0.0, inf)"),
    ("as_run", ["detached_beta", None, 3], [("frozen",), (3,)], ""),
]
WINDOWS = [
    *LEARNS,
    ("window", NOT_COUNTS, [1, 0, -1], ">= 2"),
    ("mean_speed", ["1", True, [1.0], 1j], [-0.1, 1.1, *NOT_FINITE], "[0.0, 1.0]"),
]
KINDS = {
    Attention: ATTENTION,
    Factors: FACTORS,
    LookAhead: LOOK_AHEAD,
    Hypergradient: LEARNS,
    Windows: WINDOWS,
    TwoHorizons: [
        *WINDOWS,
        ("consecutive_lr", NOT_NUMBERS, [0.0, -0.1, *NOT_FINITE], "(0.0, inf)"),
    ],
    Off: [("as_run", ["bias_corrected_decay", None, 3], [("detached_beta",), (3,)], "")],
}


def bad(config, table):
    for field, wrong_types, wrong_values, allowed in table:
        cases = [(v, TypeError) for v in wrong_types] + [(v, ValueError) for v in wrong_values]
        for value, error in cases:
            yield pytest.param(
                config, field, value, error, allowed, id=f"{config.__name__}.{field}={value!r}"
            )


@pytest.mark.parametrize(
    ("config", "field", "value", "error", "allowed"),
    [case for kind, table in KINDS.items() for case in bad(kind, table)],
)
def test_bad_values_are_named(config, field, value, error, allowed):
    with pytest.raises(error) as caught:
        config(**{field: value})
    message = str(caught.value)
    assert field in message
    assert allowed in message
    # A bad entry is shown itself, a sequence of the wrong length as a whole.
    entries = list(value) if isinstance(value, tuple) else []
    assert any(repr(shown) in message for shown in [value, *entries])


@pytest.mark.parametrize(("config", "table"), KINDS.items())
def test_no_field_is_forgotten(config, table):
    assert [row[0] for row in table] != []
    assert {row[0] for row in table} == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (Attention, "heads", 7),  # does not divide the features: they are padded
        (Attention, "layers", 1),
        (Attention, "alpha_range", 0),
        (Attention, "beta_range", 2.0),
        (LookAhead, "every", 1),
        (LookAhead, "lr", 0.0),
        (LookAhead, "log_variance_bound", None),
        (Attention, "gate_sparsity", 0.0),
        (LookAhead, "fixed_weights", (0.0, 0.0, 1)),
    ],
)
def test_the_ends_of_the_range_are_allowed(config, field, value):
    built = config(**{field: value})
    assert getattr(built, field) == value
    key = "modulator" if config is Attention else "learning"
    MetaAdamW(nn.Linear(2, 2).parameters(), **{key: built})


@pytest.mark.parametrize("config", KINDS)
def test_unknown_keywords_positions_and_changes_are_errors(config):
    with pytest.raises(TypeError, match="learning_rate"):
        config(learning_rate=1.0)
    with pytest.raises(TypeError, match="positional"):
        config("basic")
    built = config()
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(built, field.name, getattr(built, field.name))


@pytest.mark.parametrize(
    ("build", "hint"),
    [
        (lambda: Attention(features="norm_basicplus"), "norm_basic_plus"),
        (lambda: paper_preset("wikitext-2"), "wikitext2"),
        (lambda: Attention(layer=2), "layers"),
        (lambda: LookAhead(evry=2), "every"),
        (lambda: chosen("atention", None), "attention"),
        (lambda: chosen(None, "lookahed"), "lookahead"),
        (lambda: chosen({"kind": "factor"}, None), "factors"),
        (lambda: chosen(None, {"kind": "windows", "windw": 3}), "window"),
        (lambda: chosen(None, {"knd": "windows"}), "kind"),
    ],
)
def test_near_misses_get_a_hint(build, hint):
    with pytest.raises((ValueError, TypeError), match=f"did you mean '{hint}'"):
        build()


@pytest.mark.parametrize(
    ("modulator", "learning", "expected"),
    [
        (None, None, (Factors(), TwoHorizons())),
        (None, "lookahead", (Attention(), LookAhead())),
        (None, "hypergradient", (Factors(), Hypergradient())),
        (None, "windows", (Factors(), Windows())),
        (None, "two_horizons", (Factors(), TwoHorizons())),
        (None, "off", (Attention(), Off())),
        ("attention", None, (Attention(), Hypergradient())),
        ("factors", None, (Factors(), TwoHorizons())),
        ("factors", LookAhead(every=3), (Factors(), LookAhead(every=3))),
        ({"kind": "attention", "layers": 1}, "windows", (Attention(layers=1), Windows())),
        ("{'kind': 'attention', 'heads': 3}", "off", (Attention(heads=3), Off())),
        (
            {"kind": "factors", "alpha_start": {"head": 2.0}},
            {"kind": "lookahead", "priorities": [2, 5, 1]},
            (Factors(alpha_start={"head": 2.0}), LookAhead(priorities=(2, 5, 1))),
        ),
    ],
)
def test_one_choice_is_enough_and_literals_are(modulator, learning, expected):
    assert chosen(modulator, learning) == expected


@pytest.mark.parametrize(
    ("modulator", "learning", "error", "words"),
    [
        ("attention", "two_horizons", ValueError, "needs modulator='factors'.*Attention"),
        (3, None, TypeError, r"modulator must be one of \['attention', 'factors'.*got 3"),
        (None, ["windows"], TypeError, r"learning must be one of .*got \['windows'\]"),
        (LookAhead(), None, TypeError, "modulator must be one of.*LookAhead"),
        (None, Attention(), TypeError, "learning must be one of.*Attention"),
        ("{'kind'", None, ValueError, "modulator must be a dict"),
        (None, {"window": 3}, ValueError, "learning must have the key 'kind'"),
    ],
)
def test_what_does_not_go_together_is_refused(modulator, learning, error, words):
    with pytest.raises(error, match=words):
        chosen(modulator, learning)


@pytest.mark.parametrize(
    ("learning", "modulator", "lr"),
    [
        (Hypergradient(), Factors(), 0.04),
        (Hypergradient(), Attention(), 1e-3),
        (Hypergradient(optimizer="sgd"), Factors(), 1e-4),
        (Hypergradient(optimizer="gauss_newton"), Attention(), 2.0),
        (Hypergradient(lr=0.5), Factors(), 0.5),
        (LookAhead(), Attention(), 1e-4),
        (LookAhead(optimizer="adam"), Factors(), 1e-3),
        (Windows(), Attention(), 2.0),
        (TwoHorizons(), Factors(), 2.0),
    ],
)
def test_what_a_learning_rate_of_none_stands_for(learning, modulator, lr):
    groups = fine_grained_groups(nn.Linear(2, 2))
    optimizer = MetaAdamW(groups, modulator=modulator, learning=learning)
    assert optimizer._controller.learning.optimizers["meta_optimizer"].lr == lr


def test_sequences_become_tuples_so_that_configurations_compare_and_hash():
    as_list = LookAhead(priorities=[1, 2, 3], fixed_weights=[1, 0, 0], as_run=["detached_beta"])
    as_tuple = LookAhead(priorities=(1, 2, 3), fixed_weights=(1, 0, 0), as_run=("detached_beta",))
    assert as_list == as_tuple
    assert hash(as_list) == hash(as_tuple)


def test_an_objective_that_trains_nothing_is_announced():
    with pytest.warns(UserWarning, match="gap_at='theta_prime'"):
        LookAhead(objective="generalization_gap")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LookAhead(objective="generalization_gap", gap_at="theta_prime")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"priorities": []}, ValueError, "priorities"),
        ({"priorities": [1.0, 0.0]}, ValueError, r"priorities\[1\].*0\.0"),
        ({"priorities": 1.0}, TypeError, "priorities.*1.0"),
        ({"priorities": [1.0], "kind": "mse"}, ValueError, "kind.*regression.*'mse'"),
        ({"priorities": [1.0], "bound": 0.0}, ValueError, "bound.*0.0"),
        ({"priorities": [1.0], "bound": "3"}, TypeError, "bound.*'3'"),
    ],
)
def test_weighting_arguments(options, error, words):
    with pytest.raises(error, match=words):
        PriorityUncertaintyWeighting(**options)


# Table 4: K_meta, layers, hidden dimension, heads, features, dimension, gating, priorities; and
# the steps of one epoch, Table 1's warm-up.
TABLE_4 = {
    "etth1": (217, 8, 16, 6, "basic", 6, True, (1.0, 1.0, 1.0), 217),
    "wikitext2": (123, 8, 16, 6, "basic", 6, False, (1.0, 1.0, 1.0), 123),
    "multi30k": (454, 128, 64, 6, "basic", 6, False, (2.0, 5.0, 1.0), 454),
    "cifar10": (190, 64, 64, 6, "basic", 6, False, (5.0, 2.0, 1.0), 391),
    "imdb": (39, 64, 64, 11, "basic_plus", 11, True, (1.0, 3.0, 5.0), 391),
}


@pytest.mark.parametrize("task", TABLE_4)
def test_presets_are_the_papers_tables(task):
    every, layers, hidden, heads, features, dimension, gating, priorities, epoch = TABLE_4[task]
    modulator, meta = paper_preset(task).values()
    assert modulator == Attention(
        features=features,
        second_moment_norm=True,
        time_step=True,
        alpha_range=1.0,
        beta_range=1.0,
        feature_gating=gating,
        layers=layers,
        hidden_dim=hidden,
        heads=heads,
        init="xavier",
    )
    assert meta == LookAhead(
        objective="combined",
        weighting="uncertainty",
        priorities=priorities,
        every=every,
        warmup_steps=epoch,
        hvp="finite_difference",
        optimizer="sgd",
        weight_decay=1e-4,
    )
    model = nn.Linear(2, 2)
    optimizer = MetaAdamW(fine_grained_groups(model), 5e-4, modulator=modulator, learning=meta)
    assert len(optimizer.feature_names) == dimension


def test_presets_can_repeat_the_authors_departures():
    deviations = {"detached_beta", "stored_moments", "bias_corrected_decay"}
    for task in TABLE_4:
        published, meta = paper_preset(task).values()
        modulator, as_run = paper_preset(task, as_run=True).values()
        assert set(as_run.as_run) == deviations
        assert as_run.log_variance_bound is None
        same = dataclasses.replace(as_run, as_run=(), log_variance_bound=meta.log_variance_bound)
        assert same == meta
        features = "basic_plus_as_run" if task == "imdb" else published.features
        assert modulator == dataclasses.replace(published, features=features, frozen_gates=True)
