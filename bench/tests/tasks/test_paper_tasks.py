"""The five tasks on the real data: counts, splits, what a batch looks like."""

import itertools
import math

import pytest
import torch

from metaadamw_bench.data import DataError, get_data_set, load
from metaadamw_bench.data.text import PAD, UNKNOWN
from metaadamw_bench.report.paper import PAPER
from metaadamw_bench.tasks import get_task
from metaadamw_bench.tasks.cifar10 import crop_and_flip

NAMES = ["etth1", "wikitext2", "multi30k", "cifar10", "imdb"]
BEGIN, END = 2, 3


@pytest.fixture(scope="module")
def prepared(data_dir):
    kept = {}

    def prepare(name, protocol="clean", size="small"):
        key = name, protocol, size
        if key not in kept:
            kept[key] = get_task(name).prepare(protocol=protocol, size=size, data_dir=data_dir)
        return kept[key]

    return prepare


@pytest.mark.parametrize(
    ("name", "steps", "parameters", "train", "validation"),
    [
        ("etth1", 217, 396_929, 13_859, 3_465),
        ("wikitext2", 123, 2_983_184, 7_823, 808),
        ("multi30k", 454, 12_381_730, 29_000, 1_014),
        ("cifar10", 391, 11_173_962, 50_000, 10_000),
        ("imdb", 391, 949_762, 25_000, 25_000),
    ],
)
def test_the_papers_protocol(prepared, name, steps, parameters, train, validation):
    task = prepared(name, "paper", "full")
    assert task.steps_per_epoch == steps
    assert task.parameters == parameters
    assert (len(task.splits.train), len(task.splits.validation)) == (train, validation)
    assert task.splits.meta_validation is task.splits.validation
    assert task.splits.test is None
    assert (task.lr, task.weight_decay, task.betas) == (5e-4, 1e-2, (0.9, 0.999))
    assert task.batch_size == (128 if name == "cifar10" else 64)
    assert task.patience == 2
    assert task.min_delta == (1e-4 if name == "etth1" else 1e-3)
    assert task.max_epochs["adamw"] == 50
    assert task.notes


@pytest.mark.parametrize("name", NAMES)
def test_paper_numbers(name):
    task = get_task(name)
    better = max if task.metric.direction == "maximize" else min
    assert better(task.paper.adamw, task.paper.metaadamw) == task.paper.metaadamw
    in_report = PAPER[name]  # the report reads run directories alone, and has them once more
    assert (task.paper.adamw, task.paper.metaadamw) == (in_report.adamw, in_report.metaadamw)


def rows(dataset):
    return [row.tobytes() for row in dataset.tensors[0].flatten(1).numpy()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["small", "full"])
def test_clean_splits_share_no_example(prepared, name, size):
    parts = [rows(part) for part in prepared(name, "clean", size).splits]
    assert len(parts) == 4
    for part in parts:
        if name != "etth1":  # a series may repeat itself
            assert len(set(part)) == len(part) > 300
    for one, other in itertools.combinations(parts, 2):
        assert not set(one) & set(other)


@pytest.mark.parametrize(("name", "protocol"), [*((n, "clean") for n in NAMES), ("imdb", "paper")])
def test_data_are_a_function_of_protocol_and_size(prepared, data_dir, name, protocol):
    again = get_task(name).prepare(protocol=protocol, size="small", data_dir=data_dir)
    for one, other in zip(prepared(name, protocol).splits, again.splits, strict=True):
        if one is not None:
            assert all(map(torch.equal, one.tensors, other.tensors))


@pytest.mark.parametrize(
    ("name", "protocol"), [*((n, "clean") for n in NAMES), ("multi30k", "paper")]
)
def test_small_task_starts_at_chance_and_learns(prepared, name, protocol):
    task = prepared(name, protocol)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = task.build_model()
        batch = task.splits.train[torch.arange(32)]
        losses = []
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(8):
            loss = task.batch_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    if name != "etth1":
        classes = model(*batch[:-1]).shape[-1]
        assert losses[0] == pytest.approx(math.log(classes), rel=0.15)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_does_not_depend_on_the_batches(prepared, name):
    task = prepared(name)
    part = (
        type(task.splits.validation)(*task.splits.validation[:100])
        if name != "multi30k"
        else (type(task.splits.validation)(*(t[:100] for t in task.splits.validation.tensors)))
    )
    model = task.build_model().train()
    found = task.evaluate(model, part)
    assert model.training
    model.eval()
    total = task.sums(model, part[:30]) + task.sums(model, part[30:])
    assert task.means(total) == pytest.approx(found, rel=1e-4)


def test_etth1_standardisation(prepared, data_dir):
    series = load(get_data_set("etth1"), data_dir)
    paper, clean = prepared("etth1", "paper", "full"), prepared("etth1", "clean", "full")
    whole = (series - series.mean()) / series.std(correction=0)
    inputs, targets = paper.splits.train[[0, 1]]
    torch.testing.assert_close(inputs[0], whole[:96])
    torch.testing.assert_close(targets[:, 0], whole[96:98])
    torch.testing.assert_close(paper.splits.validation[-1][1], whole[-1:])

    count = int(0.7 * len(series))
    own = (series - series[:count].mean()) / series[:count].std(correction=0)
    torch.testing.assert_close(clean.splits.train[0][0], own[:96])
    torch.testing.assert_close(clean.splits.train[-1][1], own[count - 1 : count])
    torch.testing.assert_close(clean.splits.meta_validation[0][0], own[count : count + 96])
    torch.testing.assert_close(clean.splits.test[-1][1], own[-1:])


@pytest.mark.parametrize(("protocol", "size"), [("paper", "full"), ("clean", "small")])
def test_wikitext2_targets_are_the_next_words(prepared, protocol, size):
    task = prepared("wikitext2", protocol, size)
    inputs, targets = task.splits.train[:]
    assert inputs.shape[1] == (127 if size == "full" else 63)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.min() == UNKNOWN
    assert inputs.max() == (9_999 if size == "full" else 1_999)
    assert not (targets == PAD).any()


def test_wikitext2_blocks_are_cut_line_by_line(prepared, data_dir):
    text = load(get_data_set("wikitext2"), data_dir)
    inputs, targets = prepared("wikitext2", "paper", "full").splits.validation[:]
    blocks = torch.cat([inputs, targets[:, -1:]], dim=1)
    start, expected = 0, []
    for length in text.valid.lengths.tolist():
        line = text.valid.tokens[start : start + length]
        expected += [line[i : i + 128] for i in range(0, length - 127, 128)]
        start += length
    assert len(blocks) == len(expected)
    # Known words have kept their identity: same word, same number.
    numbers = {}
    for block, words in zip(blocks.tolist(), expected, strict=True):
        for number, word in zip(block, words.tolist(), strict=True):
            assert numbers.setdefault(word, number) == number
    assert numbers[text.words.index("<unk>")] == UNKNOWN


@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_multi30k_batches(prepared, protocol):
    task = prepared("multi30k", protocol, "full")
    source, shifted, target = task.splits.train[torch.arange(64)]
    assert (source[:, 0] == BEGIN).all()
    assert (shifted[:, 0] == BEGIN).all()
    assert (target[:, 0] != BEGIN).all()
    assert ((source == END).sum(1) == 1).all()
    assert ((target == END).sum(1) == 1).all()
    assert torch.equal(shifted[:, 1:], target[:, :-1])
    # No wider than the longest sentence.
    assert (source[:, -1] == END).any()
    assert (target[:, -1] == END).any()
    assert source.shape[1] < 40
    # After END only PAD.
    after = (source == END).cumsum(1) - (source == END).int()
    assert (source[after == 1] == PAD).all()
    one = task.splits.train[7]
    assert [tensor.dim() for tensor in one] == [1, 1, 1]


def test_multi30k_vocabularies(prepared):
    def unknown(task):
        words = task.splits.train.tensors[1]
        return ((words == UNKNOWN).sum() / (words > END).sum().clamp(min=1)).item()

    paper, clean = prepared("multi30k", "paper", "full"), prepared("multi30k", "clean", "full")
    model = paper.build_model()
    assert model.source_embedding is model.target_embedding
    assert model.pad is None
    assert unknown(paper) > 2
    model = clean.build_model()
    assert model.source_embedding.num_embeddings > 9_000
    assert 7_000 < model.target_embedding.num_embeddings < 9_000
    assert model.pad == PAD
    assert unknown(clean) < 0.05


def test_multi30k_long_sentences_keep_their_end(prepared):
    source = prepared("multi30k", "clean", "small").splits.train.tensors[0]
    assert source.shape[1] == 24
    assert ((source == END).sum(1) == 1).all()
    assert (source[:, -1] == END).any()


def test_cifar10_parts(prepared):
    train, meta_validation, validation, test = prepared("cifar10", "clean", "full").splits
    assert [len(part) for part in (meta_validation, validation, test)] == [2500, 2500, 10_000]
    assert len(train) == 45_000
    images, labels = train[:]
    assert images.dtype == torch.uint8
    assert labels.bincount(minlength=10).min() > 4_400
    channels = images[:5_000].float().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(channels, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01, rtol=0)


def test_crop_and_flip():
    images = 1 + torch.arange(32 * 32).remainder(250).view(1, 1, 32, 32).expand(200, 3, 32, 32)
    images = images.to(torch.uint8)
    labels = torch.arange(200)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    first, same, other = (crop_and_flip((images, labels), g)[0] for g in generators)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    framed = torch.nn.functional.pad(images[0], (4, 4, 4, 4))
    crops = framed.unfold(1, 32, 1).unfold(2, 32, 1)[0].flatten(0, 1)  # 81 crops
    expected = torch.cat([crops, crops.flip(-1)])
    found = torch.tensor([(expected == image[0]).all(dim=(1, 2)).nonzero()[0] for image in first])
    assert 70 < (found >= 81).sum() < 130  # mirrored
    assert len(found.unique()) > 80
    assert torch.equal(first[:, 0], first[:, 2])


def test_imdb_reviews(prepared):
    inputs, labels = prepared("imdb", "paper", "full").splits.train[:]
    assert inputs.shape == (25_000, 256)
    assert labels.sum() == 12_500
    assert inputs.max() == 24_999
    padding = inputs == PAD
    assert (padding.int().diff(dim=1) >= 0).all()  # on the right
    assert padding[:, -1].float().mean().item() == pytest.approx(0.636, abs=0.01)
    assert (inputs == UNKNOWN).float().mean() < 0.05


def test_refusals(data_dir, tmp_path):
    with pytest.raises(ValueError, match="protocol: 'dirty' is not one of paper, clean"):
        get_task("etth1").prepare(protocol="dirty", data_dir=data_dir)
    with pytest.raises(ValueError, match="size: 'huge' is not one of small, full"):
        get_task("etth1").prepare(size="huge", data_dir=data_dir)
    with pytest.raises(ValueError, match=r"size: 'full' is not one of small \(digits\)"):
        get_task("digits").prepare(size="full")
    with pytest.raises(DataError, match="etth1: nothing in"):
        get_task("etth1").prepare(data_dir=tmp_path)
