"""What a loss notes in attributes is put back."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaadamw.integrations.kept import kept
from tests.training import assert_same


def owner() -> SimpleNamespace:
    """Counters of all kinds, as trainers have them."""
    return SimpleNamespace(
        count=3,
        seen=torch.tensor(5),
        total=torch.zeros(3),
        histogram=np.arange(4),
        losses=[1.0, 2.0],
        nested=[[1], [2, [3]], {"n": 0}],
        window=deque([1, 2], maxlen=2),
        names={"a"},
        kinds=Counter(a=2),
        ordered=OrderedDict(b=1, a=2),
        # as trl has them
        _metrics={"train": defaultdict(list, loss=[1.0]), "eval": defaultdict(list)},
        pair=([1], torch.zeros(2)),
        long=list(range(5000)),
        text="x",
    )


CHANGES = {
    "count": lambda o: setattr(o, "count", o.count + 1),
    "rebind": lambda o: setattr(o, "losses", []),
    "delete": lambda o: vars(o).pop("text"),
    "new": lambda o: setattr(o, "calls", getattr(o, "calls", 0) + 1),
    "tensor": lambda o: o.seen.add_(2),
    "slice": lambda o: o.total[1:].fill_(7),
    "array": lambda o: o.histogram.__iadd__(1),
    "append": lambda o: o.losses.append(3.0),
    "clear": lambda o: o.losses.clear(),
    "replace": lambda o: o.losses.__setitem__(slice(1), [9.0]),
    "nested": lambda o: o.nested[1][1].append(4),
    "dict in list": lambda o: o.nested[2].update(n=1),
    "full deque": lambda o: o.window.append(3),
    "set": lambda o: o.names.add("b"),
    "counter": lambda o: o.kinds.update(a=1, b=1),
    "order": lambda o: o.ordered.move_to_end("b"),
    "new key": lambda o: o._metrics["train"]["length"].append(4),
    "old key": lambda o: o._metrics["train"]["loss"].append(4.0),
    "pop key": lambda o: o._metrics.pop("eval"),
    "in tuple": lambda o: (o.pair[0].append(2), o.pair[1].add_(1)),
    "long": lambda o: (o.long.append(1), o.long.__setitem__(0, 7)),
}


def noted(o: SimpleNamespace) -> tuple[object, list[int]]:
    return copy.deepcopy(vars(o)), [id(v) for v in vars(o).values()]


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=12), st.booleans())
def test_whatever_is_noted_is_put_back(names, raises):
    o = owner()
    (before, identities) = noted(o)
    try:
        with kept(o):
            for name in names:
                if name in ("rebind", "delete") and names.count(name) > 1:
                    continue
                if name != "pop key" or "eval" in o._metrics:
                    CHANGES[name](o)
            if raises:
                raise KeyError("a loss that fails")
    except KeyError:
        assert raises
    after, now = noted(o)
    assert_same(after, before)
    assert sorted(now) == sorted(identities)  # the same objects, which others may hold
    assert list(o.ordered) == ["b", "a"]
    assert (o.window.maxlen, type(o.kinds)) == (2, Counter)
    assert o._metrics["train"]["new"] == []  # still a defaultdict


def test_a_module_keeps_its_own_attributes():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.outputs, self.tokens = nn.Linear(2, 2), [], 0
            self.register_buffer("mean", torch.zeros(2))

    module = Module()
    with kept(module):
        module.outputs.append(1)
        module.tokens += 5
        module.mean.add_(1)  # buffers and parameters are the meta-update's to put back
        module.added = 3
    assert (module.outputs, module.tokens) == ([], 0)
    assert not hasattr(module, "added")
    assert module.mean.tolist() == [1, 1]


def test_what_holds_itself_and_what_cannot_be_written():
    o = SimpleNamespace(frozen=np.arange(3), ring=[1])
    o.frozen.flags.writeable = False
    o.ring.append(o.ring)
    with torch.inference_mode():
        o.inference = torch.zeros(2)
    with kept(o):
        o.ring.append(2)
    assert len(o.ring) == 2
    assert o.ring[1] is o.ring


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_data_sets_are_left_out(name):
    o = SimpleNamespace(train_dataset=[torch.zeros(1)], eval_dataset=[torch.zeros(1)])
    with kept(o, leave_out=("train_dataset", "eval_dataset")):
        getattr(o, name)[0].add_(1)
    assert getattr(o, name)[0].item() == 1
