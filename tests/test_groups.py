"""Sec. 3.2: each parameter in the group that its name, class, depth and shape say, and in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaadamw import MetaAdamW, fine_grained_groups, group_table


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 2)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class MiniGPT(nn.Module):
    """Six blocks, learned positions, the head tied to the token embedding."""

    def __init__(self, blocks: int = 6, dim: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, dim)
        self.positions = nn.Parameter(torch.zeros(8, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 11, bias=False)
        self.head.weight = self.embed.weight


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3)
        self.norm1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.stages = nn.Sequential(*(ResidualBlock(4) for _ in range(4)))
        self.fc = nn.Linear(4, 10)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True)
        self.cell = nn.GRUCell(4, 3)
        self.out = nn.Bilinear(5, 5, 2)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.PReLU()
    )


def scalar() -> nn.Module:
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(()))
    return model


MODELS = {
    "gpt": MiniGPT,
    "transformer": lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
    "resnet": ResNet,
    "lstm": Tagger,
    "sequential": sequential,
    "scalar": scalar,
}


def names_by_group(model: nn.Module, **options: str) -> dict[str, list[str]]:
    return {g["name"]: g["param_names"] for g in fine_grained_groups(model, **options)}


def group_of(model: nn.Module, parameter: str, kinds: str = "extended") -> str:
    (name,) = [n for n, names in names_by_group(model, kinds=kinds).items() if parameter in names]
    return name


@pytest.mark.parametrize("kinds", ["extended", "paper"])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_every_parameter_is_in_one_group(build, kinds):
    model = build()
    groups = fine_grained_groups(model, kinds=kinds)
    grouped = [p for g in groups for p in g["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len({g["name"] for g in groups}) == len(groups)
    named = dict(model.named_parameters())
    for group in groups:
        assert [id(named[n]) for n in group["param_names"]] == [id(p) for p in group["params"]]
        bias = "bias" if group["is_bias"] else "weight"
        assert group["name"] == f"{group['layer_type']}.{group['depth_bucket']}.{bias}"
        assert 0.0 <= group["depth"] <= 1.0
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert group["is_bias"] == (param.dim() == 1 or name.endswith("bias"))


# (model, parameter, its group by the paper's rules, its group by ours): the rules applied by hand.
EXPECTED = [
    ("gpt", "embed.weight", "embedding.middle.weight", None),
    ("gpt", "positions", "other.middle.weight", None),
    ("gpt", "blocks.0.attn.in_proj_weight", "attention.shallow.weight", None),
    ("gpt", "blocks.0.attn.out_proj.bias", "attention.shallow.bias", None),
    ("gpt", "blocks.1.mlp.0.weight", "feed_forward.shallow.weight", None),  # 1/5: the first number
    ("gpt", "blocks.2.mlp.2.weight", "feed_forward.middle.weight", None),  # 2/5
    ("gpt", "blocks.3.mlp.2.bias", "feed_forward.middle.bias", None),  # 3/5
    ("gpt", "blocks.4.ln_1.weight", "layer_norm.deep.bias", None),  # one-dimensional: a "bias"
    ("gpt", "final_norm.weight", "layer_norm.middle.bias", None),
    ("transformer", "encoder.layers.0.linear1.weight", "feed_forward.shallow.weight", None),
    ("transformer", "encoder.layers.1.linear2.bias", "feed_forward.deep.bias", None),
    ("transformer", "decoder.layers.1.multihead_attn.in_proj_bias", "attention.deep.bias", None),
    ("transformer", "encoder.layers.1.self_attn.out_proj.weight", "attention.deep.weight", None),
    ("transformer", "encoder.norm.weight", "layer_norm.middle.bias", None),
    ("resnet", "stem.weight", "other.middle.weight", "convolution.middle.weight"),
    ("resnet", "stages.0.conv1.bias", "other.shallow.bias", "convolution.shallow.bias"),
    ("resnet", "stages.3.norm1.weight", "layer_norm.deep.bias", "batch_norm.deep.bias"),
    ("resnet", "stages.3.bn2.bias", "other.deep.bias", "batch_norm.deep.bias"),
    ("resnet", "fc.weight", "feed_forward.middle.weight", None),
    ("lstm", "embedding.weight", "embedding.middle.weight", None),
    ("lstm", "lstm.weight_ih_l0", "other.middle.weight", "recurrent.middle.weight"),
    ("lstm", "lstm.bias_hh_l1_reverse", "other.middle.bias", "recurrent.middle.bias"),
    ("lstm", "cell.weight_hh", "other.middle.weight", "recurrent.middle.weight"),
    ("lstm", "out.weight", "feed_forward.middle.weight", None),
    ("sequential", "0.weight", "other.middle.weight", "convolution.shallow.weight"),
    ("sequential", "1.weight", "other.middle.bias", "batch_norm.shallow.bias"),
    ("sequential", "4.weight", "feed_forward.middle.weight", "feed_forward.deep.weight"),
    ("sequential", "5.weight", "other.middle.bias", "other.deep.bias"),
    ("scalar", "scale", "other.middle.weight", None),  # 0-d is not 1-D
]


@pytest.mark.parametrize(("model", "parameter", "paper", "extended"), EXPECTED)
def test_rules(model, parameter, paper, extended):
    built = MODELS[model]()
    assert group_of(built, parameter, "paper") == paper
    assert group_of(built, parameter) == (extended or paper)


@pytest.mark.parametrize(
    ("attribute", "layer_type"),
    [
        ("Token_EMBED", "embedding"),
        ("attn_norm", "attention"),  # the first rule that fits wins
        ("embedding_attention", "embedding"),
        ("ffn_norm", "feed_forward"),
        ("my_mlp", "feed_forward"),
        ("feed_forward", "feed_forward"),
        ("pre_normalizer", "layer_norm"),
    ],
)
@pytest.mark.parametrize("kinds", ["extended", "paper"])
def test_the_name_speaks_before_the_class(attribute, layer_type, kinds):
    model = nn.Module()
    setattr(model, attribute, nn.Conv1d(2, 2, 1))
    assert {g["layer_type"] for g in fine_grained_groups(model, kinds=kinds)} == {layer_type}


@pytest.mark.parametrize(("index", "depth"), [(0, "shallow"), (3, "middle"), (6, "middle")])
def test_exact_thirds_are_in_the_middle(index, depth):
    model = nn.Module()
    model.h = nn.ModuleList(nn.Linear(1, 1) for _ in range(10))
    assert group_of(model, f"h.{index}.weight").split(".")[1] == depth


def test_depth_is_the_mean_over_the_group():
    by_name = {g["name"]: g["depth"] for g in fine_grained_groups(MiniGPT())}
    assert by_name["attention.shallow.weight"] == pytest.approx((0 + 1 / 5) / 2)
    assert by_name["attention.deep.weight"] == pytest.approx((4 / 5 + 1) / 2)
    assert by_name["embedding.middle.weight"] == 0.5


def test_tied_weights_appear_once():
    model = MiniGPT()
    grouped = [n for g in fine_grained_groups(model) for n in g["param_names"]]
    assert grouped.count("embed.weight") == 1
    assert "head.weight" not in grouped


def test_frozen_parameters_are_left_out():
    model = ResNet()
    model.stem.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    grouped = {n for g in fine_grained_groups(model) for n in g["param_names"]}
    assert set(dict(model.named_parameters())) - grouped == {"stem.weight", "fc.bias"}


@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named"])
def test_split_inside_the_users_groups_keeps_their_hyperparameters(named):
    model = MiniGPT()
    split = {True: [], False: []}
    for name, param in model.named_parameters():
        split[param.dim() > 1].append((name, param) if named else param)
    sources = [
        {"params": split[True], "weight_decay": 0.1, "lr": 3e-4, "name": "decay"},
        {"params": split[False], "weight_decay": 0.0},
    ]
    groups = fine_grained_groups(model, sources)
    assert len({g["name"] for g in groups}) == len(groups)
    for group in groups:
        decayed = group["params"][0].dim() > 1
        assert {p.dim() > 1 for p in group["params"]} == {decayed}
        assert group["weight_decay"] == (0.1 if decayed else 0.0)
        assert group.get("lr") == (3e-4 if decayed else None)
        assert group["name"].startswith("decay." if decayed else "group1.")
    assert sources[0]["name"] == "decay"  # the caller's groups are not touched
    assert sources[0]["params"] is split[True]

    optimizer = MetaAdamW(groups, lr=1e-3, learning="lookahead")
    assert {g["lr"] for g in optimizer.param_groups} == {3e-4, 1e-3}

    (alone,) = {g["name"].split(".")[0] for g in fine_grained_groups(model, sources[:1])}
    assert alone == "decay"  # another network's groups may be added later
    assert optimizer.group_names == [g["name"] for g in groups]


def test_a_part_of_the_model_can_be_given():
    model = ResNet()
    groups = fine_grained_groups(model, [{"params": model.fc.parameters(), "lr": 1.0}])
    assert [g["name"] for g in groups] == ["feed_forward.middle.weight", "feed_forward.middle.bias"]


shared = nn.Linear(2, 2)
ERRORS = {
    "no module": (lambda: fine_grained_groups([shared.weight]), TypeError, "model"),
    "kinds": (lambda: fine_grained_groups(shared, kinds="all"), ValueError, "kinds.*paper.*'all'"),
    "frozen model": (
        lambda: fine_grained_groups(nn.Linear(1, 1).requires_grad_(False)),
        ValueError,
        "trainable",
    ),
    "empty model": (lambda: fine_grained_groups(nn.ReLU()), ValueError, "trainable"),
    "no params": (
        lambda: fine_grained_groups(shared, [{"lr": 1.0}]),
        ValueError,
        r"param_groups\[0\].*params",
    ),
    "foreign": (
        lambda: fine_grained_groups(shared, [{"params": nn.Linear(3, 4).weight}]),
        ValueError,
        r"param_groups\[0\].*\(4, 3\).*model",
    ),
    "twice in a group": (
        lambda: fine_grained_groups(shared, [{"params": [shared.bias, shared.bias]}]),
        ValueError,
        r"param_groups\[0\].*'bias'",
    ),
    "in two groups": (
        lambda: fine_grained_groups(shared, [{"params": shared.bias}, {"params": [shared.bias]}]),
        ValueError,
        r"param_groups\[1\].*'bias'",
    ),
    "parameters instead of groups": (
        lambda: fine_grained_groups(shared, list(shared.parameters())),
        (TypeError, ValueError),
        "param_groups",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), ERRORS.values(), ids=ERRORS)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_table():
    model = nn.Sequential(nn.Embedding(1000, 2), nn.Linear(2, 3))
    expected = """\
name                       kind          depth    tensors  parameters
embedding.shallow.weight   embedding     shallow        1       2,000
feed_forward.deep.weight   feed_forward  deep           1           6
feed_forward.deep.bias     feed_forward  deep           1           3
total                                                   3       2,009"""
    table = group_table(fine_grained_groups(model)).splitlines()
    assert [line.split() for line in table] == [line.split() for line in expected.splitlines()]
    assert len({len(line) for line in table}) == 1  # aligned


def test_table_of_any_optimizer():
    rows = group_table(torch.optim.SGD(shared.parameters(), lr=1.0).param_groups).splitlines()
    assert rows[1].split() == ["group0", "-", "-", "2", "6"]


LEAVES = [
    lambda: nn.Linear(2, 3),
    lambda: nn.Linear(3, 2, bias=False),
    lambda: nn.Embedding(3, 2),
    lambda: nn.LayerNorm(2),
    lambda: nn.BatchNorm1d(3),
    lambda: nn.Conv1d(1, 2, 1),
    lambda: nn.GRU(1, 2),
    lambda: nn.MultiheadAttention(2, 1),
    lambda: nn.PReLU(),
    lambda: nn.ReLU(),
]
ATTRIBUTES = st.sampled_from(["attn", "mlp", "norm", "embed", "h", "body", "0", "7", "12"])
MODULES = st.recursive(
    st.sampled_from(LEAVES).map(lambda leaf: leaf()),
    lambda children: (
        st.lists(children, min_size=1, max_size=4).map(lambda c: nn.Sequential(*c))
        | st.dictionaries(ATTRIBUTES, children, min_size=1, max_size=4).map(nn.ModuleDict)
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(model=MODULES, data=st.data())
def test_any_model_is_partitioned(model, data):
    params = list(model.parameters())
    for param in params:
        param.requires_grad_(data.draw(st.booleans()))
    kinds = data.draw(st.sampled_from(["paper", "extended"]))
    trainable = {id(p) for p in params if p.requires_grad}
    if not trainable:
        with pytest.raises(ValueError, match="trainable"):
            fine_grained_groups(model, kinds=kinds)
        return
    owner = data.draw(st.lists(st.integers(0, 2), min_size=len(params), max_size=len(params)))
    sources = [
        {"params": [p for p, o in zip(params, owner, strict=True) if o == i], "weight_decay": i}
        for i in range(3)
    ]
    for param_groups in (None, sources):
        groups = fine_grained_groups(model, param_groups, kinds=kinds)
        grouped = [id(p) for g in groups for p in g["params"]]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == trainable
        assert len({g["name"] for g in groups}) == len(groups)
        decay = {id(p): o for p, o in zip(params, owner, strict=True)}
        for group in groups if param_groups else []:
            assert {decay[id(p)] for p in group["params"]} == {group["weight_decay"]}
        MetaAdamW(groups, learning="lookahead")  # accepts every result
