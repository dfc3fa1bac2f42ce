import errno
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from bench.tests.report.synthetic import change_json, write_run

from metaadamw_bench import cli
from metaadamw_bench.report import write_report

ARMS = ("adamw", "adamw-tuned", "metaadamw")


def write_runs(root):
    for task in ("etth1", "imdb"):
        for arm in ARMS:
            for seed in range(3):
                write_run(root, task, arm, seed)
    for seed in range(3):
        write_run(root, "etth1", "metaadamw", seed, ablation="features-enhanced", shift=-2)
        write_run(root, "etth1", "adamw", seed, protocol="paper", size="full")
    failed = write_run(root, "imdb", "adamw-tuned", 3)
    change_json(failed / "summary.json", status="failed", error="loss is <nan> | at step 3")
    unfinished = write_run(root, "imdb", "adamw-tuned", 4)
    (unfinished / "summary.json").unlink()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    write_runs(place / "runs")
    write_report([place / "runs"], place / "out")
    return place


def files(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """Checks nesting; collects anchors, links, images and the text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.sources.append(given["src"])
            assert given["alt"]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_is_well_formed_and_needs_nothing_else(place):
    text = (place / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in text
    assert str(place) not in text


def test_same_runs_give_the_same_bytes_wherever_they_are(place, tmp_path):
    shutil.copytree(place / "runs", tmp_path / "elsewhere" / "runs")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red"}):
        write_report([tmp_path / "elsewhere" / "runs"], tmp_path / "again")
    assert files(tmp_path / "again") == files(place / "out")


def test_markdown_shows_every_picture_and_nothing_is_left_behind(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    written = {p.as_posix() for p in files(place / "out") if p.suffix == ".png"}
    assert shown == written
    assert {p.name for p in (place / "out").iterdir()} == {
        "figures",
        "report.html",
        "report.md",
        "statistics.json",
    }


def test_without_pictures_all_else_is_the_same(place, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        for module in ("curves", "forest", "heatmaps"):
            patched.delattr(f"metaadamw_bench.report.{module}._draw")
        write_report([place / "runs"], tmp_path, pictures=False)
    found, full = files(tmp_path), files(place / "out")
    names = [path.name for path in full if path.suffix == ".png"]
    assert found.keys() == {path for path in full if path.suffix != ".png"}
    for path in (Path("report.md"), Path("report.html")):
        assert b"<img" not in found[path]
        assert b"![" not in found[path]
    assert all(f"figures/{name}" in found[Path("report.md")].decode() for name in names)
    ours, theirs = (json.loads(side[Path("statistics.json")]) for side in (found, full))
    assert sorted(theirs.pop("figures")) == sorted(names)
    assert ours.pop("figures") == []
    assert ours == theirs


def test_pictures_of_an_earlier_report_go_with_it(place, tmp_path):
    shutil.copytree(place / "out", tmp_path / "out")
    (tmp_path / "out" / "figures" / "mine.png").write_bytes(b"x")
    write_report([place / "runs"], tmp_path / "out", pictures=False)
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["mine.png"]


def test_curves_are_a_picture_a_task_and_the_others_a_picture_an_arm(place):
    assert {path.name for path in files(place / "out") if path.suffix == ".png"} == {
        "figure1-etth1-clean-small.png",
        "figure5-imdb-clean-small.png",
        "figure1-etth1-paper-full.png",
        "gains-metaadamw-clean-small.png",
        "modulation-metaadamw-clean-small.png",
    }


@pytest.mark.parametrize(
    "heading",
    [
        "Claims",
        "Clean protocol, small size",
        "Paper protocol, full size",
        "Table 2: best metric and time",
        "Paired differences",
        "Table 3: ablations",
        "Table 5: time per epoch and in total",
        "α and β over time",
        "Fidelity: AdamW against the authors' curves",
        "Run directories left out",
    ],
)
def test_sections(place, heading):
    assert heading in Page((place / "out" / "report.html").read_text(encoding="utf-8")).words
    assert f" {heading}\n" in (place / "out" / "report.md").read_text(encoding="utf-8")


def table(text, title, first):
    """The rows of a Markdown table below a title, by their first cell, below a heading row."""
    rows, heading = {}, ""
    for line in text[text.index(title) :].split("\n\n```")[0].splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            heading = cells[0] if cells[0].startswith("**") else heading
            rows[heading, cells[0]] = cells
    return {name: cells for (where, name), cells in rows.items() if first in where}


def test_table_2_numbers_are_those_of_the_runs(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    runs = sorted((place / "runs" / "clean-small" / "etth1" / "adamw").glob("*/summary.json"))
    values = [json.loads(path.read_text())["best_metric"] for path in runs]
    rows = table(text, "Table 2: best metric and time\n", "etth1")
    mean = float(rows["adamw"][2].split(" ± ")[0])
    assert mean == pytest.approx(sum(values) / 3, rel=0.01)
    assert rows["adamw"][1] == "3"
    assert rows["adamw"][3] == "0.006147"
    assert rows["metaadamw-paper"][3] == "0.005885"


def test_table_5_shares_are_of_seconds_of_one_clock(tmp_path):
    run = write_run(tmp_path, "etth1", "metaadamw", 0)
    seconds = {"train": 60, "optimizer_step": 9, "meta": 20, "evaluation": 15, "logging": 5}
    for wall in (101.0, 250.0):  # a busy machine lengthens the wall time alone
        change_json(run / "summary.json", seconds=seconds | {"total": wall})
        write_report([tmp_path], tmp_path / "out")
        text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
        row = table(text, "Table 5: time per epoch and in total\n", "etth1")["metaadamw"]
        assert [row[4], row[6], row[7]] == ["20.0 %", "100.0", "15.0 %"]


def test_claim_4_and_the_method_say_which_adamw_times_are_relative_to(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    claim, method = text.index("4. At most 3 %"), text.index("How the numbers are made\n")
    default = "torch.optim.AdamW as it is by default"
    assert default in text[claim : text.index("5. Beyond")]
    assert default in text[method:]
    assert "docs/performance.md measures against fused AdamW" in text[method:]


def test_cells_without_runs_are_empty(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    rows = table(text, "Table 2: best metric and time\n", "cifar10")
    assert rows["adamw"] == ["adamw", "", "", "87.02", *[""] * 8]


def test_the_papers_numbers_stand_beside_its_own_arms_only(tmp_path):
    write_run(tmp_path, "wikitext2", "adamw", 0)
    for arm in ("metaadamw", "metaadamw-paper"):
        for ablation in (None, "features-enhanced"):
            write_run(tmp_path, "wikitext2", arm, 0, ablation=ablation)
    write_report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for arm, own, changed in (("metaadamw", "", ""), ("metaadamw-paper", "115.5", "121.0")):
        rows = table(text, f"{arm}, one thing changed", "")
        assert rows["adamw"][3] == "120.5"
        assert rows[arm][3] == own
        assert rows["features-enhanced: Enhanced"][3] == changed


def test_failed_runs_are_counted_and_all_left_out_runs_are_named(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    rows = table(text, "Table 2: best metric and time\n", "imdb")
    assert rows["adamw-tuned"][1] == "3<br>1 failed"
    left_out = text[text.index("Run directories left out\n") :]
    assert r"imdb/adamw-tuned/seed3 | failed: loss is \<nan\> \| at step 3" in left_out
    assert "imdb/adamw-tuned/seed4 | unfinished: no summary.json" in left_out


def test_losses_are_printed_like_wins(tmp_path):
    for seed in range(5):
        write_run(tmp_path, "imdb", "adamw", seed)
        write_run(tmp_path, "imdb", "metaadamw", seed, shift=-8)
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r'<td class="worse">−\d+\.\d+ %', html)
    assert "(worse)" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_every_table_says_how_to_make_it_again(place):
    text = (place / "out" / "report.md").read_text(encoding="utf-8")
    tables = re.split(r"\n\| --- ", text)[1:]
    for block in tables[:-1]:  # the last one lists what was left out
        assert re.search(r"```console\n(\$ metaadamw (sweep|run).*\n)+\$ metaadamw report", block)


def test_statistics_hold_every_value_behind_the_report(place):
    content = json.loads((place / "out" / "statistics.json").read_text(encoding="utf-8"))
    setting = content["settings"]["clean-small"]
    cell = next(c for c in setting["cells"] if (c["task"], c["arm"]) == ("imdb", "adamw-tuned"))
    assert [run["seed"] for run in cell["runs"]] == [0, 1, 2]
    assert cell["failed"] == 1
    found = next(
        c
        for c in setting["comparisons"]
        if (c["task"], c["arm"], c["baseline"], c["budget"], c["ablation"])
        == ("imdb", "metaadamw", "adamw-tuned", "whole run", None)
    )
    differences = [a - b for a, b in zip(found["values"], found["baseline_values"], strict=True)]
    assert found["gains"] == pytest.approx(differences)
    assert len(content["left_out"]) == 2
    assert [claim["claim"][0] for claim in content["claims"]] == list("12345")


def test_pictures_of_an_earlier_report_go_and_those_of_others_stay(tmp_path):
    write_run(tmp_path / "runs", "etth1", "adamw", 0)
    write_run(tmp_path / "runs", "digits", "adamw", 0)
    out = tmp_path / "out"
    write_report([tmp_path / "runs"], out)
    (out / "figures" / "mine.png").write_bytes(b"mine")
    assert (out / "figures" / "digits-clean-small.png").exists()
    shutil.rmtree(tmp_path / "runs" / "clean-small" / "digits")
    write_report([tmp_path / "runs"], out)
    assert not (out / "figures" / "digits-clean-small.png").exists()
    assert (out / "figures" / "figure1-etth1-clean-small.png").exists()
    assert (out / "figures" / "mine.png").exists()


def test_a_full_disk_leaves_the_earlier_report_as_it_was(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "etth1", "adamw", 0)
    write_report([tmp_path / "runs"], tmp_path / "out")

    def files():
        return {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    before, real = files(), Path.write_bytes

    def full(self, content):
        if self.name == ".statistics.json.tmp":  # the last of them
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    write_run(tmp_path / "others", "digits", "adamw", 0)
    with pytest.raises(OSError, match=r"No space left on device: .*/statistics\.json'"):
        write_report([tmp_path / "others"], tmp_path / "out")
    assert files() == before


def test_one_run_alone_and_runs_that_all_failed(tmp_path):
    run = write_run(tmp_path / "runs", "etth1", "metaadamw", 0, epochs=1)
    write_report([tmp_path / "runs"], tmp_path / "out")
    change_json(run / "summary.json", status="failed", error="boom")
    write_report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "0<br>1 failed" in text
    assert "0 finished runs" in text


def test_it_tells_how_far_it_is(tmp_path):
    write_runs(tmp_path / "runs")
    told = []
    write_report(
        [tmp_path / "runs"],
        tmp_path / "out",
        lambda what, done, total: told.append((what, done, total)),
    )
    reading = [entry for entry in told if entry[0] == "reading runs"]
    assert reading == [("reading runs", index, 26) for index in range(26)]
    steps = told[26:]
    total = len(steps) - 1
    assert [done for _, done, _ in steps] == list(range(total + 1))
    assert {of for *_, of in steps} == {total}
    names = [what for what, *_ in steps]
    assert (names[0], names[-1]) == ("claims", "done")
    for expected in (
        "clean protocol, small size: curves, imdb",
        "clean protocol, small size: paired differences, metaadamw",
        "clean protocol, small size: α and β, metaadamw",
        "paper protocol, full size: curves, etth1",
        "statistics",
    ):
        assert names.count(expected) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_shows_it_on_a_terminal_alone(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    write_run(tmp_path / "runs", "etth1", "adamw", 0)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["report", str(tmp_path / "runs"), "--out", str(out)])
    told = capsys.readouterr()
    assert not exit_info.value.code
    assert told.out == f"{out / 'report.html'}\n"
    assert ("done" in told.err) == terminal
    assert terminal or told.err == ""
