import dataclasses

import pytest
import torch
from torch.utils.data import TensorDataset

from metaadamw import MetaAdamW, MetaConfig, fine_grained_groups
from metaadamw.bench.arms import ARMS, Arm, get_arm
from metaadamw.bench.tasks import Splits, demo_task_names, get_task
from metaadamw.bench.train import evaluate, shuffled_batches, train


def small(name):
    """The task with a validation part of 20 examples, to save time."""
    task = get_task(name).prepare()
    train_part, meta_validation, validation, _ = task.splits
    splits = Splits(train_part, meta_validation, TensorDataset(*validation[:20]))
    return dataclasses.replace(task, splits=splits)


def numbers(run):
    """Everything but the wall time."""
    return dataclasses.asdict(dataclasses.replace(run, seconds=None))


def build_frozen(model, task, total_steps, seed):
    """MetaAdamW whose meta-updates take place but move nothing."""
    meta = MetaConfig(every=2, lr=0.0)
    return MetaAdamW(
        fine_grained_groups(model),
        lr=task.lr,
        weight_decay=task.weight_decay,
        meta=meta,
        total_steps=total_steps,
        seed=seed,
        foreach=False,
    )


FROZEN = Arm(name="frozen", title="frozen", description="", build=build_frozen)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", demo_task_names())
def test_same_seed_gives_the_same_numbers(name, arm):
    first, second = (train(small(name), get_arm(arm), 1, steps=11) for _ in range(2))
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
    run = train(task, get_arm("metaadamw"), 0, steps=30)
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
    assert run.seconds.meta == 0
    assert (torch.tensor(run.alpha) != 1).any()


def test_losses_evaluations_and_seconds():
    seen = []
    run = train(small("digits"), get_arm("adamw"), 0, steps=20, on_step=seen.append)
    assert seen == run.losses
    assert len(run.losses) == 20
    assert [evaluation.step for evaluation in run.evaluations] == list(range(0, 21, 2))
    assert 0 < run.seconds.optimizer_step < run.seconds.training
    assert run.seconds.evaluation > 0
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


def test_unknown_arm_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="'sgd' is not one of adamw, metaadamw, metaadamw-online"):
        get_arm("sgd")


def test_evaluation_weights_every_example_alike():
    task = get_task("digits").prepare()
    model = task.build_model()
    part = TensorDataset(*task.splits.validation[:70])  # batches of 64 and 6
    found = evaluate(task, model, part, step=5)
    images, labels = part[:]
    with torch.no_grad():
        logits = model.eval()(images)
    assert found.step == 5
    assert found.loss == pytest.approx(task.loss(logits, labels).item(), rel=1e-5)
    assert found.metric == pytest.approx(task.metric.measure(logits, labels).item(), rel=1e-5)


def test_a_pass_shows_each_example_once_and_the_next_pass_another_order():
    batches = shuffled_batches(TensorDataset(torch.arange(12)), 4, seed=0)
    passes = [torch.cat([next(batches)[0] for _ in range(3)]) for _ in range(2)]
    for shown in passes:
        assert sorted(shown.tolist()) == list(range(12))
    assert passes[0].tolist() != passes[1].tolist()


def test_a_data_set_smaller_than_a_batch_is_one_batch():
    (batch,) = next(shuffled_batches(TensorDataset(torch.arange(3)), 4, seed=0))
    assert sorted(batch.tolist()) == [0, 1, 2]
