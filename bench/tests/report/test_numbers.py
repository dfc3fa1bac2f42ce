import pytest

from metaadamw_bench.report import numbers


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.006147], "0.006147"),
        ([120.47], "120.5"),
        ([120.0, 122.0, 121.0], "121.0 ± 1.0"),
        ([0.0061, 0.0063], "0.00620 ± 0.00014"),
        ([87.02, 87.02], "87.02 ± 0.00"),
        ([0.0, 0.0], "0.0000 ± 0.0000"),
        ([], ""),
    ],
)
def test_spread_shows_as_many_digits_as_the_deviation_allows(values, written):
    assert numbers.spread(values) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(4.263, "+4.26 %"), (-27.35, "−27.4 %"), (172.53, "+173 %"), (-0.001, "0.00 %")],
)
def test_percent(value, written):
    assert numbers.percent(value) == written


@pytest.mark.parametrize(
    ("value", "written"), [(None, ""), (0.00001, "< 0.0001"), (0.0123, "0.012"), (0.5, "0.50")]
)
def test_p_value(value, written):
    assert numbers.p_value(value) == written
