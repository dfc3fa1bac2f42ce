"""Every field is validated where it is given; the presets are Tables 1 and 4 of the paper."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
from torch import nn

from metaadamw import (
    MetaAdamW,
    MetaConfig,
    ModulatorConfig,
    PriorityUncertaintyWeighting,
    fine_grained_groups,
    paper_preset,
)

NOT_NUMBERS = ["1", None, True, [1.0], 1j]
NOT_FINITE = [math.nan, math.inf, -math.inf]
NOT_COUNTS = ["1", None, True, 1.0]
NOT_FLAGS = [0, 1, "True", None]

# field, values of the wrong type, values out of range, what the message says is allowed
MODULATOR = [
    ("features", [], ["basics", "", None, 3, ("basic",)], "basic_plus"),
    ("second_moment_norm", NOT_FLAGS, [], "True or False"),
    ("time_step", NOT_FLAGS, [], "True or False"),
    ("feature_gating", NOT_FLAGS, [], "True or False"),
    ("mean_preserving", NOT_FLAGS, [], "True or False"),
    ("layers", NOT_COUNTS, [-1], ">= 0"),
    ("heads", NOT_COUNTS, [0, -1], ">= 1"),
    ("hidden_dim", NOT_COUNTS, [0, -1], ">= 1"),
    ("update_every", NOT_COUNTS, [0, -1], ">= 1"),
    ("scale", [], ["exp", None], "linear"),
    ("alpha_start", NOT_NUMBERS, [0.4, 1.6, *NOT_FINITE], "[0.5, 1.5]"),
    ("alpha_range", NOT_NUMBERS, [-0.1, 2.1, *NOT_FINITE], "[0.0, 2.0]"),
    ("beta_range", NOT_NUMBERS, [-0.1, 2.1, *NOT_FINITE], "[0.0, 2.0]"),
    ("init", [], ["zeros", None, 0], "identity"),
]
POSITIVE_TRIPLE = [(1.0, 1.0), (1.0,) * 4, (), (0.0, 1, 1), (1, -1, 1), (1, 1, math.nan)]
META = [
    ("mode", [], ["lookahed", "", None, True], "online"),
    ("objective", [], ["all", None, ("loss_decrease",)], "loss_decrease"),
    ("priorities", [1.0, "111", None, (1.0, 1.0, "1")], POSITIVE_TRIPLE, ""),
    ("weighting", [], ["sum", None], "fixed"),
    ("fixed_weights", [1.0, None, (1.0, 1.0, None)], [(1.0, 1.0), (1, -1, 1)], ""),
    ("every", NOT_COUNTS, [0, -5], ">= 1"),
    ("warmup_steps", NOT_COUNTS, [-1], ">= 0"),
    ("window", NOT_COUNTS, [0, -1], ">= 1"),
    ("mean_speed", NOT_NUMBERS, [-0.1, 1.1, *NOT_FINITE], "[0.0, 1.0]"),
    ("consecutive_lr", NOT_NUMBERS, [-0.1, *NOT_FINITE], "[0.0, inf)"),
    ("optimizer", [], ["adamw", 3, True], "sgd"),
    ("lr", ["1", True, [1.0]], [-1e-4, *NOT_FINITE], "[0.0, inf)"),
    ("weight_decay", NOT_NUMBERS, [-1e-4, *NOT_FINITE], "[0.0, inf)"),
    ("hvp", [], ["jvp", None], "finite_difference"),
    ("gap_at", [], ["theta'", None], "theta_prime"),
    ("log_variance_bound", ["3", True], [0.0, -1.0, *NOT_FINITE], "(0.0, inf)"),
    ("gate_sparsity", ["0", True], [-1.0, *NOT_FINITE], "[0.0, inf)"),
    ("as_run", ["frozen_gates", None, 3], [("frozen",), (3,)], ""),
]


def bad(config, table):
    for field, wrong_types, wrong_values, allowed in table:
        cases = [(v, TypeError) for v in wrong_types] + [(v, ValueError) for v in wrong_values]
        for value, error in cases:
            yield pytest.param(config, field, value, error, allowed, id=f"{field}={value!r}")


@pytest.mark.parametrize(
    ("config", "field", "value", "error", "allowed"),
    [*bad(ModulatorConfig, MODULATOR), *bad(MetaConfig, META)],
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


@pytest.mark.parametrize(("config", "table"), [(ModulatorConfig, MODULATOR), (MetaConfig, META)])
def test_no_field_is_forgotten(config, table):
    assert [row[0] for row in table] != []
    assert {row[0] for row in table} == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ModulatorConfig, "heads", 7),  # does not divide the features: they are padded
        (ModulatorConfig, "layers", 1),
        (ModulatorConfig, "alpha_range", 0),
        (ModulatorConfig, "beta_range", 2.0),
        (MetaConfig, "every", 1),
        (MetaConfig, "lr", 0.0),
        (MetaConfig, "log_variance_bound", None),
        (MetaConfig, "gate_sparsity", 0.0),
        (MetaConfig, "fixed_weights", (0.0, 0.0, 1)),
    ],
)
def test_the_ends_of_the_range_are_allowed(config, field, value):
    built = config(**{field: value})
    assert getattr(built, field) == value
    key = "modulator" if config is ModulatorConfig else "meta"
    MetaAdamW(nn.Linear(2, 2).parameters(), **{key: built})


@pytest.mark.parametrize("config", [ModulatorConfig, MetaConfig])
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
        (lambda: ModulatorConfig(features="norm_basicplus"), "norm_basic_plus"),
        (lambda: MetaConfig(mode="on-line"), "online"),
        (lambda: paper_preset("wikitext-2"), "wikitext2"),
    ],
)
def test_near_misses_get_a_hint(build, hint):
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        build()


@pytest.mark.parametrize(
    ("options", "optimizer", "lr"),
    [
        ({}, "sgd", 1e-4),
        ({"mode": "off"}, "sgd", 1e-4),
        ({"mode": "online"}, "adam", 1e-3),
        ({"mode": "online", "optimizer": "sgd"}, "sgd", 1e-4),
        ({"optimizer": "adam"}, "adam", 1e-3),
        ({"mode": "online", "lr": 0.5}, "adam", 0.5),
    ],
)
def test_defaults_that_depend_on_the_mode(options, optimizer, lr):
    config = MetaConfig(**options)
    assert (config.optimizer, config.lr) == (optimizer, lr)


def test_defaults_are_chosen_anew_on_request():
    config = MetaConfig(every=7)
    kept = dataclasses.replace(config, mode="online")
    assert (kept.optimizer, kept.lr) == ("sgd", 1e-4)
    anew = dataclasses.replace(config, mode="online", optimizer=None, lr=None)
    assert anew == MetaConfig(mode="online", every=7)


def test_sequences_become_tuples_so_that_configurations_compare_and_hash():
    as_list = MetaConfig(priorities=[1, 2, 3], fixed_weights=[1, 0, 0], as_run=["frozen_gates"])
    as_tuple = MetaConfig(priorities=(1, 2, 3), fixed_weights=(1, 0, 0), as_run=("frozen_gates",))
    assert as_list == as_tuple
    assert hash(as_list) == hash(as_tuple)


def test_an_objective_that_trains_nothing_is_announced():
    with pytest.warns(UserWarning, match="gap_at='theta_prime'"):
        MetaConfig(objective="generalization_gap")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MetaConfig(objective="generalization_gap", gap_at="theta_prime")


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
    modulator, meta = paper_preset(task)
    assert modulator == ModulatorConfig(
        features=features,
        second_moment_norm=True,  # Table 1 from here on
        time_step=True,
        alpha_range=1.0,
        beta_range=1.0,
        feature_gating=gating,
        layers=layers,
        hidden_dim=hidden,
        heads=heads,
        init="xavier",
    )
    assert meta == MetaConfig(
        mode="lookahead",
        objective="combined",
        weighting="uncertainty",
        priorities=priorities,
        every=every,
        warmup_steps=epoch,
        hvp="finite_difference",  # ours: the paper's product is the exact one
        optimizer="sgd",
        lr=1e-4,  # the authors' code from here on
        weight_decay=1e-4,
    )
    model = nn.Linear(2, 2)
    optimizer = MetaAdamW(fine_grained_groups(model), 5e-4, modulator=modulator, meta=meta)
    assert len(optimizer.feature_names) == dimension


def test_presets_can_repeat_the_authors_departures():
    deviations = {"detached_beta", "stored_moments", "frozen_gates", "bias_corrected_decay"}
    for task in TABLE_4:
        (published, meta), (modulator, as_run) = paper_preset(task), paper_preset(task, as_run=True)
        assert set(as_run.as_run) == deviations
        assert as_run.log_variance_bound is None
        same = dataclasses.replace(as_run, as_run=(), log_variance_bound=meta.log_variance_bound)
        assert same == meta
        features = "basic_plus_as_run" if task == "imdb" else published.features
        assert modulator == dataclasses.replace(published, features=features)
