"""One quick run of everything, and the page as a function of its numbers."""

from __future__ import annotations

import json

import pytest
from benchmarks.goals import GOALS
from benchmarks.gpu_page import gpu_section
from benchmarks.models import mini_gpt

from benchmarks import gpu, memory, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    report.main(["--quick", "--results", str(folder), "--page", str(folder / "page.md")])
    return folder


def test_every_goal_has_a_number_or_says_that_it_was_not_measured(folder):
    results = json.loads((folder / "cpu.json").read_text())
    verdicts = {goal.what: goal.verdict(results) for goal in GOALS}
    left_out = [what for what, verdict in verdicts.items() if verdict == "not measured"]
    assert all("memory" in what or "…" in what for what in left_out), left_out
    assert all(row["applied"] for row in results["end_to_end"].values())


def test_the_page_names_the_machine_and_warns_of_a_quick_run(folder):
    page = (folder / "page.md").read_text()
    results = json.loads((folder / "cpu.json").read_text())
    assert results["environment"]["torch"] in page
    assert "the numbers below mean nothing" in page
    assert "None" not in page
    assert "nan" not in page


def test_the_page_is_a_function_of_the_numbers(folder, tmp_path):
    report.main(["--page-only", "--results", str(folder), "--page", str(tmp_path / "page.md")])
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert [path.name for path in written] == [
        "performance-growth.svg",
        "performance-steps.svg",
        "page.md",
    ]
    for path in written:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_the_code_for_accelerators_runs_here(folder, tmp_path):
    arguments = ["--device", "cpu", "--tiny", "--results", str(tmp_path / "gpu.json")]
    assert gpu.main(arguments) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert set(results["sync_freedom"].values()) == {"free"}
    assert all(row["largest_difference"] == 0.0 for row in results["graph"].values())
    assert results["training"]["metaadamw"]["applied"] == 2
    (tmp_path / "cpu.json").write_text((folder / "cpu.json").read_text())
    page = tmp_path / "page.md"
    report.main(["--page-only", "--results", str(tmp_path), "--page", str(page)])
    assert "### 12,000 parameters" in page.read_text()


def test_a_section_that_fails_is_reported(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory")

    for section in ("steps", "sync_freedom", "graph", "correctness", "training"):
        monkeypatch.setattr(gpu.Bench, section, lambda self, *_: fail(self))
    arguments = ["--device", "cpu", "--tiny", "--results", str(tmp_path / "gpu.json")]
    assert gpu.main(arguments) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["graph"] == {"failed": "RuntimeError: out of memory"}
    assert "out of memory" in gpu_section(results)


def test_mini_gpt_has_three_million_parameters_in_thirty_tensors():
    params = list(mini_gpt(quick=False).parameters())
    assert (len(params), sum(p.numel() for p in params)) == (30, 2_983_184)


def test_memory_that_cannot_be_measured_says_why(monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    assert memory.in_own_process("wide", "exact", quick=True) == {"skipped": "no output"}
