"""Every arm of a picture can be told from the others, and stands in its legend."""

from __future__ import annotations

import pytest
from bench.tests.report.synthetic import change_json, write_run
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from metaadamw_bench.arms import ARMS
from metaadamw_bench.report import curves, picture
from metaadamw_bench.report.collection import Collection
from metaadamw_bench.report.runs import read_runs

OTHERS = [f"another-{index}" for index in range(60)]


@pytest.mark.parametrize("arms", [[*ARMS], [*ARMS, *OTHERS], OTHERS, [*OTHERS, "adamw"]], ids=len)
def test_no_two_arms_look_the_same(arms):
    styles = curves._styles(arms)
    assert list(styles) == arms
    assert len(set(styles.values())) == len(arms)


@pytest.fixture
def drawn(monkeypatch):
    """The drawings that become pictures, laid out."""
    found: list[Figure] = []
    real = picture.render

    def render(draw, **words):
        drawing = draw()
        rendered = real(lambda: drawing, **words)
        assert rendered.image
        drawing.canvas.draw()  # in its own dots per inch, which saving has changed and put back
        found.append(drawing)
        return rendered

    monkeypatch.setattr(picture, "render", render)
    return found


def collection(root, arms):
    for index, arm in enumerate(arms):
        run = write_run(root, "wikitext2", "adamw", index)
        place = root / "clean-small" / "wikitext2" / arm / "seed0"
        place.parent.mkdir(parents=True, exist_ok=True)
        run.rename(place)
        for name in ("config.json", "summary.json"):
            change_json(place / name, arm=arm, seed=0)
    runs, left_out = read_runs([root])
    assert not left_out
    return Collection(runs[0].cell.setting, runs, [], ["runs"])


@pytest.mark.parametrize(
    "arms",
    [
        ["adamw"],
        ["adamw", "metaadamw"],
        [*ARMS],
        [arm for arm in ARMS if arm.startswith("metaadamw")],
        [*OTHERS[:40], *(arm for arm in ARMS if arm.startswith("metaadamw"))],
    ],
    ids=len,
)
def test_every_arm_is_in_a_legend_that_lies_in_the_picture(arms, drawn, tmp_path):
    assert curves.curves(collection(tmp_path, arms), "wikitext2") is not None
    (figure,) = drawn
    width, height = figure.bbox.width, figure.bbox.height
    named, looks = set(), {}
    for band in figure.subfigs:
        axes = band.axes[0]
        (legend,) = band.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert len(set(texts)) == len(texts)
        named |= set(texts)
        for text in legend.get_texts():
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
        own = band.bbox
        box = legend.get_window_extent()
        assert own.y0 <= box.y0 < box.y1 <= own.y1
        for line, handle in zip(
            (line for line in axes.lines if line.get_label() in texts),
            legend.get_lines(),
            strict=True,
        ):
            dashes = (line.get_linestyle(), str(line._unscaled_dash_pattern))
            assert handle.get_linestyle() == line.get_linestyle()
            assert handle.get_marker() == line.get_marker()
            looks[line.get_label()] = (to_hex(line.get_color()), *dashes, line.get_marker())
    assert named == set(arms)
    assert len(set(looks.values())) == len(arms)
