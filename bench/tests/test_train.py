import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from metaadamw import LookAhead, fine_grained_groups
from metaadamw_bench.arms import get_arm
from metaadamw_bench.demo import ARMS
from metaadamw_bench.tasks import Splits, demo_task_names, get_task
from metaadamw_bench.today import plain_choice
from metaadamw_bench.train import train


def small(name):
    """The task with a validation part of 20 examples, to save time."""
    task = get_task(name).prepare()
    train_part, meta_validation, validation, _ = task.splits
    splits = Splits(train_part, meta_validation, TensorDataset(*validation[:20]))
    return dataclasses.replace(task, splits=splits)


def numbers(run):
    """Everything but the wall time."""
    return dataclasses.asdict(dataclasses.replace(run, seconds=None))


def frozen(task):
    """MetaAdamW whose meta-updates take place but move nothing."""
    settings = get_arm("metaadamw").settings(task)
    return {**settings, "learning": plain_choice(LookAhead(every=2, lr=0.0))}


FROZEN = replace(get_arm("metaadamw"), name="frozen", settings=frozen)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
@pytest.mark.parametrize("name", demo_task_names())
def test_same_seed_gives_the_same_numbers(name, arm):
    first, second = (train(small(name), arm, 1, steps=11) for _ in range(2))
    assert numbers(first) == numbers(second)


def test_other_seeds_give_other_numbers():
    first, second = (train(small("digits"), get_arm("adamw"), s, steps=2) for s in (0, 1))
    assert first.losses[0] != second.losses[0]


@pytest.mark.parametrize("name", demo_task_names())
def test_arms_share_weights_batches_and_dropout(name):
    # A modulator that never moves is AdamW, so equal losses mean equal weights, batches and
    # dropout masks, with meta-updates in between.
    adamw = train(small(name), get_arm("adamw"), 3, steps=8)
    frozen = train(small(name), FROZEN, 3, steps=8)
    assert frozen.meta_updates == 4
    assert frozen.losses == adamw.losses
    assert frozen.evaluations == adamw.evaluations


def test_history_of_alpha_and_beta():
    task = get_task("digits").prepare()
    run = train(task, ARMS[1], 0, steps=30)
    groups = [group["name"] for group in fine_grained_groups(task.build_model())]
    assert run.groups == groups
    for history in (torch.tensor(run.alpha), torch.tensor(run.beta)):
        assert history.shape == (30, len(groups))
        assert (history[:10] == 1).all()  # AdamW until the first meta-update
        assert (history[10:] != 1).any()
    assert run.meta_updates == 3
    assert run.skipped == []


def test_online_learns_without_meta_updates():
    run = train(small("digits"), get_arm("metaadamw-online"), 0, steps=10)
    assert run.meta_updates == 0
    assert run.seconds["meta"] == 0
    assert (torch.tensor(run.alpha) != 1).any()


def test_losses_evaluations_and_seconds():
    seen = []
    run = train(small("digits"), get_arm("adamw"), 0, steps=20, on_step=seen.append)
    assert seen == run.losses
    assert len(run.losses) == 20
    assert [evaluation.step for evaluation in run.evaluations] == list(range(0, 21, 2))
    assert 0 < run.seconds["optimizer_step"] < run.seconds["train"]
    assert run.seconds["evaluation"] > 0
    assert run.groups == run.alpha == run.beta == []


def test_caller_keeps_its_random_numbers():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(small("digits"), get_arm("adamw"), 0, steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(small("digits"), get_arm("adamw"), 0, steps=0)
