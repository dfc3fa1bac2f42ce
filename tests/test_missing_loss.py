"""A loss that is None: the meta-update is left out, says so, and nothing has moved."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaadamw import LookAhead
from tests.training import assert_same, batch, full_snapshot, loss_fn, make, train

BATCHES = ("batch1", "batch2", "val_batch")


def updated(left_out: set[str], at_call: int = 1, **meta):
    """An update whose loss is None for some batches, from one of their evaluations on."""
    model, optimizer = make(learning=LookAhead(every=2, **meta))
    train(model, optimizer, range(2))
    batches = {name: batch(1000 + i) for i, name in enumerate(BATCHES)}
    calls = dict.fromkeys(BATCHES, 0)

    def loss(model, data):
        name = next(n for n, given in batches.items() if given is data)
        calls[name] += 1
        value = loss_fn(model, data)
        return None if name in left_out and calls[name] >= at_call else value

    before = full_snapshot(model, optimizer)
    update = optimizer.update_attention(model, loss, **batches)
    return update, optimizer, before, full_snapshot(model, optimizer), calls


@settings(deadline=None, max_examples=30)
@given(
    left_out=st.sets(st.sampled_from(BATCHES), min_size=1),
    hvp=st.sampled_from(["exact", "finite_difference", "auto"]),
)
def test_skipped_with_the_reason(left_out, hvp):
    update, optimizer, before, after, _ = updated(left_out, hvp=hvp)
    order = ("batch1", "val_batch", "batch2")  # as they are evaluated
    first = next(name for name in order if name in left_out)
    assert not update.applied
    assert update.skipped_reason == f"no loss on {first}: loss_fn returned None"
    assert (update.total, update.alpha, update.hvp) == (None, None, None)
    counts = optimizer.metrics(as_float=True)
    assert (counts["meta/applied"], counts["meta/skipped"]) == (0, 1)
    assert not optimizer.meta_update_due
    for part in (before, after):  # where it counts that an update was due
        part["learned"]["learning"].pop("last_meta_step", None)
        part["learned"].pop("skipped", None)
    assert_same(after, before)


@pytest.mark.parametrize("hvp", ["exact", "finite_difference"])
@pytest.mark.parametrize("name", BATCHES)
def test_at_any_evaluation(name, hvp):
    """Also where only the loss at θ' is None."""
    update, _, before, after, calls = updated({name}, at_call=2, hvp=hvp)
    if calls[name] > 1:
        assert update.skipped_reason == f"no loss on {name}: loss_fn returned None"
        assert_same(after["params"], before["params"])
        assert_same(after["torch"], before["torch"])
    else:
        assert update.applied


@pytest.mark.parametrize("objective", ["gradient_alignment", "loss_decrease", "generalization_gap"])
def test_a_batch_that_the_objective_does_not_look_at(objective):
    """None for a batch that is not evaluated is no reason to skip."""
    unused = {"gradient_alignment": {"val_batch"}}.get(objective, {"batch2"})
    gap_at = "theta_prime" if objective == "generalization_gap" else "theta"
    assert updated(unused, objective=objective, gap_at=gap_at)[0].applied


def test_training_goes_on():
    """The next update is taken, and is that of a run whose update was never due."""
    model, optimizer = make(learning=LookAhead(every=2))
    for step in range(4):
        train(model, optimizer, [step])
        if optimizer.meta_update_due:
            data = [batch(1000 + i) for i in range(3)]
            loss = loss_fn if step == 3 else lambda model, data: None
            update = optimizer.update_attention(model, loss, *data)
    assert update.applied
    later, again = make(learning=LookAhead(every=2, warmup_steps=4))
    train(later, again, range(4))
    same = again.update_attention(later, loss_fn, *data)
    assert (same.total, same.gradient_alignment) == (update.total, update.gradient_alignment)
    assert_same([p.detach() for p in later.parameters()], [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("value", [3.0, "loss", [torch.zeros(())], torch.zeros(2)])
def test_what_is_no_loss_is_still_refused(value):
    model, optimizer = make(learning=LookAhead(every=2))
    train(model, optimizer, range(2))
    data = [batch(1000 + i) for i in range(3)]
    with pytest.raises(ValueError, match="loss_fn must return a real scalar tensor, got"):
        optimizer.update_attention(model, lambda model, batch: value, *data)
