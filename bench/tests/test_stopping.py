import math

import pytest

from metaadamw_bench.stopping import Standing
from metaadamw_bench.tasks import Means


def follow(standing, losses, metrics=None):
    """Add evaluations until it stops; the number of epochs."""
    for epoch, loss in enumerate(losses, start=1):
        metric = loss if metrics is None else metrics[epoch - 1]
        standing.add(Means(loss, metric), {}, epoch=epoch, step=10 * epoch)
        if standing.stop:
            return epoch
    return None


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [
        ([5, 4, 3, 2, 1], None),
        ([5, 4, 4, 4, 4], 4),
        ([5, 4, 4.5, 3, 3.5, 3.5], 6),
        # Each time a little better, but never by more than min_delta than the last reference.
        ([5, 4.9995, 4.999], 3),
        ([5, 4.9995, 4.9989, 4.9], None),
        ([math.nan, math.nan], 2),
    ],
)
def test_stops_after_patience_without_a_lower_loss(losses, stopped):
    assert follow(Standing(2, 1e-3, "minimize"), losses) == stopped


def test_without_patience_it_never_stops():
    assert follow(Standing(None, 0.0, "minimize"), [1.0] * 50) is None


@pytest.mark.parametrize(("direction", "epoch"), [("maximize", 3), ("minimize", 1)])
def test_best_metric_is_the_best_epochs_whatever_the_loss(direction, epoch):
    standing = Standing(None, 0.0, direction)
    follow(standing, [1.0, 0.5, 2.0, 3.0], [10, 20, 40, 40])
    numbers = standing.numbers()
    assert numbers["best_epoch"] == epoch
    assert numbers["best_step"] == 10 * epoch
    assert numbers["best_metric"] == {1: 10, 3: 40}[epoch]
    assert numbers["best_loss"] == 0.5
    assert (numbers["final_loss"], numbers["final_metric"]) == (3.0, 40)


def test_a_number_that_is_none_is_never_the_best():
    standing = Standing(None, 0.0, "minimize")
    follow(standing, [math.nan, 2.0, math.nan])
    assert (standing.best_metric, standing.best_loss, standing.best_epoch) == (2.0, 2.0, 2)
