import math

import numpy as np
import pytest
from bench.tests.report.synthetic import change_json, write_run
from scipy import stats

from metaadamw_bench.report.comparison import compare, holm, paired_statistics
from metaadamw_bench.report.runs import read_runs

GAINS = [0.31, -0.12, 0.45, 0.27, 0.08, 0.19]


def test_mean_and_paired_t_by_hand():
    found = paired_statistics(GAINS)
    mean = sum(GAINS) / 6
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in GAINS) / 5)
    t = mean / (deviation / math.sqrt(6))
    assert found.mean == pytest.approx(mean)
    assert found.t == pytest.approx(2 * stats.t.sf(t, df=5))


def test_paired_t_is_scipys_ttest_rel():
    before = np.array([1.0, 2.0, 3.5, 3.9, 5.2, 6.1])
    after = before + GAINS
    assert paired_statistics(after - before).t == pytest.approx(
        stats.ttest_rel(after, before).pvalue
    )


def test_wilcoxon_by_counting_signs():
    # Ranks of |gain|: only the second smallest (rank 2) is negative, so W = 2; of the 2⁶ sign
    # patterns 3 have a rank sum of at most 2 (none, {1}, {2}): p = 2 · 3 / 64.
    assert paired_statistics(GAINS).wilcoxon == pytest.approx(6 / 64)
    # Five seeds, all better: the smallest p there is.
    assert paired_statistics([1.0, 2.0, 3.0, 4.0, 5.5]).wilcoxon == pytest.approx(0.0625)


@pytest.mark.parametrize("seed", range(8))
def test_wilcoxon_of_ties_and_zeros_is_scipys(seed):
    generator = np.random.default_rng(seed)
    gains = generator.integers(-3, 4, size=2 + seed) / 7
    gains[:2] = 1 / 7, -1 / 7
    assert paired_statistics(gains).wilcoxon == stats.wilcoxon(gains).pvalue


def test_interval_is_scipys_bca_and_the_same_every_time():
    expected = stats.bootstrap(
        (np.array(GAINS),),
        np.mean,
        n_resamples=9_999,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert paired_statistics(GAINS).interval == pytest.approx(expected, rel=1e-9)
    assert paired_statistics(GAINS) == paired_statistics(GAINS)


def test_what_values_cannot_decide_is_none():
    assert paired_statistics([0.4]) == (0.4, None, None, None)
    assert paired_statistics([0.4, 0.4, 0.4])[1:] == (None, None, None)
    two = paired_statistics([0.1, 0.5])
    assert two.interval is None
    assert two.t is not None


def test_equal_runs_are_no_evidence():
    assert paired_statistics([0.0] * 5) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_rounding_does_not_move_an_interval():
    gains = np.array([0.1, 0.7, 0.2, 0.4, 0.9])
    low, high = paired_statistics(gains).interval
    for scale in (3, 7, 0.3, 1 + 1e-15):
        assert paired_statistics(scale * gains).interval == pytest.approx(
            (scale * low, scale * high), rel=1e-9
        )


def test_equal_accuracies_tie(tmp_path):
    # 970 of 1,000 images, in batches of 64: float32 means of the last batch round differently.
    metrics(tmp_path, "digits", "adamw", [97.0] * 5)
    metrics(tmp_path, "digits", "metaadamw", [97.0 * (1 + 3e-9)] * 5)
    runs, _ = read_runs([tmp_path])
    (found,) = compare(runs, "metaadamw", "adamw", "whole run")
    assert found.gains == (0.0,) * 5


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.03 0.04, times 4 3 2 1: 0.04 0.06 0.06 0.04, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def metrics(root, task, arm, values):
    for seed, value in enumerate(values):
        run = write_run(root, task, arm, seed)
        change_json(run / "summary.json", test_metric=value)


@pytest.mark.parametrize(
    ("task", "better", "worse"), [("etth1", 0.9, 1.0), ("imdb", 1.0, 0.9)], ids=["low", "high"]
)
def test_gains_respect_the_direction_of_the_metric(tmp_path, task, better, worse):
    metrics(tmp_path, task, "metaadamw", [better + 0.001 * seed for seed in range(5)])
    metrics(tmp_path, task, "adamw", [worse - 0.002 * seed for seed in range(5)])
    runs, _ = read_runs([tmp_path])
    (win,) = compare(runs, "metaadamw", "adamw", "whole run")
    (loss,) = compare(runs, "adamw", "metaadamw", "whole run")
    assert win.measured_on == "test"
    assert (win.verdict, loss.verdict) == ("better", "worse")
    assert win.gains[0] == pytest.approx(0.1)
    assert loss.statistics.mean == pytest.approx(-win.statistics.mean)


@pytest.mark.parametrize(("seeds", "verdict"), [(4, "undecided"), (5, "better")])
def test_few_seeds_decide_nothing(tmp_path, seeds, verdict):
    metrics(tmp_path, "etth1", "metaadamw", [0.9 + 0.001 * seed for seed in range(seeds)])
    metrics(tmp_path, "etth1", "adamw", [1.0 - 0.002 * seed for seed in range(seeds)])
    (found,) = compare(read_runs([tmp_path])[0], "metaadamw", "adamw", "whole run")
    assert found.t_holm < 0.001
    assert found.verdict == verdict


def test_only_common_seeds_are_compared(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, "etth1", "adamw", seed)
    for seed in (1, 2, 3):
        write_run(tmp_path, "etth1", "metaadamw", seed)
    runs, _ = read_runs([tmp_path])
    (found,) = compare(runs, "metaadamw", "adamw", "whole run")
    assert found.seeds == (1, 2)


def test_holm_corrects_over_the_tasks_of_a_comparison(tmp_path):
    for task in ("etth1", "imdb", "wikitext2"):
        for arm in ("adamw", "metaadamw"):
            for seed in range(5):
                write_run(tmp_path, task, arm, seed)
    runs, _ = read_runs([tmp_path])
    found = compare(runs, "metaadamw", "adamw", "whole run")
    assert [c.t_holm for c in found] == pytest.approx(holm([c.statistics.t for c in found]))
    assert len(found) == 3
