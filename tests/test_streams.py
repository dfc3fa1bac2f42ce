import pytest
import torch

from metaadamw.state.streams import BatchOrder, stream_seed


def test_streams_seeds_and_places_differ():
    seeds = [
        stream_seed(seed, stream, *place)
        for seed in range(3)
        for stream in ("order", "dropout")
        for place in ((), (0,), (1,), (0, 1))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_place_in_a_stream_never_changes():
    # Published results rest on it.
    assert stream_seed(0, "order", 7) == 8072639728423279657


@pytest.mark.parametrize(("examples", "per_pass"), [(12, 3), (14, 4), (14, 3), (3, 1)])
def test_a_pass_shows_examples_once_and_the_next_pass_another_order(examples, per_pass):
    order = BatchOrder(examples, 4, per_pass, 0, "order")
    passes = [torch.cat([order[p * per_pass + b] for b in range(per_pass)]) for p in range(2)]
    for shown in passes:
        assert len(set(shown.tolist())) == len(shown) == min(examples, 4 * per_pass)
    assert passes[0].tolist() != passes[1].tolist()


def test_any_batch_can_be_asked_for_in_any_order():
    order = BatchOrder(10, 4, 3, 5, "order")
    batches = [order[n].tolist() for n in range(9)]
    again = BatchOrder(10, 4, 3, 5, "order")
    assert [again[n].tolist() for n in reversed(range(9))] == batches[::-1]


def test_without_a_stream_the_order_is_that_of_the_data():
    order = BatchOrder(5, 2, 3, 0, None)
    assert [order[n].tolist() for n in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
