import dataclasses
import itertools
import subprocess
import sys

import pytest
import torch

from metaadamw_bench.tasks import get_task, task_names

DEMO = ["digits", "pydoc"]
BUNDLED = [*DEMO, "photos"]


def parts(name):
    return get_task(name).prepare().splits[:3]


def test_names_lead_to_their_tasks():
    assert task_names() == ["etth1", "wikitext2", "multi30k", "cifar10", "imdb", *BUNDLED]
    for name in task_names():
        assert get_task(name).name == name


def test_unknown_task_is_refused_with_the_choice():
    with pytest.raises(ValueError, match=r"'mnist' is not one of etth1, .*, digits, pydoc, photos"):
        get_task("mnist")


def test_tasks_are_imported_only_when_asked_for():
    code = (
        "import sys, metaadamw_bench.tasks; "
        "sys.exit(any(m in sys.modules for m in ('metaadamw_bench.tasks.digits', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_specification_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_task("digits").lr = 1.0


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_share_no_example(name):
    rows = [{tuple(row) for row in s[:][0].flatten(1).tolist()} for s in parts(name)]
    for one, other in itertools.combinations(rows, 2):
        # The rules of text tables are all alike: windows of a few characters.
        assert [row for row in one & other if len(set(row)) > 5] == []


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", (597, 200, 1000)),
        ("pydoc", (5160, 280, 280)),
        ("photos", (1456, 208, 208)),
    ],
)
def test_split_sizes(name, sizes):
    # The text of pydoc grows a little with each version of Python.
    for split, size in zip(parts(name), sizes, strict=True):
        assert len(split) == pytest.approx(size, rel=0.6 if name == "pydoc" else 0)


@pytest.mark.parametrize("name", DEMO)
def test_untrained_model_is_at_chance(name):
    task = get_task(name).prepare()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build_model()
    batch = task.splits.train[: task.batch_size]
    loss = task.batch_loss(model, batch)
    assert loss.shape == ()
    classes = model(batch[0]).shape[-1]
    assert loss.item() == pytest.approx(torch.tensor(classes).log().item(), rel=0.1)


def test_pydoc_targets_are_the_next_characters():
    inputs, targets = get_task("pydoc").prepare().splits.train[:]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_pydoc_model_does_not_see_the_future():
    model = get_task("pydoc").prepare().build_model().eval()
    characters = torch.randint(0, 96, (1, 64))
    changed = characters.clone()
    changed[0, 40:] = (changed[0, 40:] + 1) % 96
    torch.testing.assert_close(model(characters)[:, :40], model(changed)[:, :40])


def test_photos_are_whole_and_their_noise_is_as_strong_as_it_says():
    splits = get_task("photos").prepare().splits
    for split in splits:
        images, clean = split[:]
        assert 0 <= clean.min() < 0.05
        assert 0.95 < clean.max() <= 1
        assert (images - clean).std() == pytest.approx(0.1, rel=0.01)
    # Rows of pixels of a patch lie beside each other in the photograph: the next is much like it.
    rows = clean[:, :, 1:] - clean[:, :, :-1]
    assert rows.abs().mean() < clean.std() / 4


def test_photos_noise_is_fresh_at_every_visit_and_the_target_stays():
    task = get_task("photos").prepare()
    batch = task.splits.train[:8]
    generator = torch.Generator().manual_seed(0)
    first, second = (task.augment(batch, generator) for _ in range(2))
    assert torch.equal(first[1], batch[1])
    assert torch.equal(second[1], batch[1])
    assert not torch.equal(first[0], second[0])
    assert (first[0] - batch[1]).std() == pytest.approx(0.1, rel=0.02)


def test_photos_metric_is_the_signal_to_noise_ratio():
    task = get_task("photos").prepare()
    assert task.metric.finish(0.01) == pytest.approx(20)
    noisy, clean = task.splits.validation[:]
    assert task.metric.finish(task.loss(noisy, clean).item()) == pytest.approx(20, abs=0.1)
