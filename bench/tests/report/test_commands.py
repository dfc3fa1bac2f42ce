"""The commands under a table make its runs, what those read from, and nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from bench.tests.report.synthetic import change_json, write_run

from metaadamw_bench import cli, sweep
from metaadamw_bench.arms import ARMS
from metaadamw_bench.report.ablations import table3
from metaadamw_bench.report.collection import Collection
from metaadamw_bench.report.commands import run_commands
from metaadamw_bench.report.robustness import rates_table
from metaadamw_bench.report.runs import read_runs
from metaadamw_bench.report.tables import overview, table2
from metaadamw_bench.tasks import get_task

OPTIONS = "--protocol clean --size small"


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """``made(commands)``: the run directories that commands come to, below their roots."""
    prepared = {}

    def prepare(request, data_dir):
        # Commands of any task are planned with the one that needs no data.
        if request.task not in prepared:
            prepared[request.task] = get_task("digits").prepare()
        return prepared[request.task]

    monkeypatch.setattr(sweep, "prepare", prepare)
    monkeypatch.setattr(sweep.Job, "command", lambda self, *_, **__: [str(self.place)])

    def made(commands):
        places = set()
        for command in commands:
            words = shlex.split(command)
            root = words[words.index("--out") + 1]
            if words[1] == "sweep":
                words[words.index("--out") + 1] = str(tmp_path / "nothing here yet")
                with pytest.raises(SystemExit) as exit_info:
                    cli.main([*words[1:], "--dry-run"])
                assert not exit_info.value.code
                lines = capsys.readouterr().out.splitlines()
                found = [shlex.split(line)[1] for line in lines]
                below = tmp_path / "nothing here yet"
                places |= {str(root / Path(place).relative_to(below)) for place in found}
            elif words[1] == "run":
                places.add(root)
        return places

    return made


def collection(root):
    runs, left_out = read_runs([root])
    assert left_out == []
    (setting,) = {run.cell.setting for run in runs}
    return Collection(setting, runs, left_out, [root.name])


def directories(runs):
    return {run.shown_directory for run in runs}


def is_read_by_others(place):
    return Path(place).parent.name == "tuning"


@pytest.fixture
def unequal(tmp_path, monkeypatch):
    """Arms with other tasks and other seeds, learning rates and ablations of some."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    for task in ("etth1", "imdb", "digits"):
        for seed in range(4):
            write_run(root, task, "metaadamw", seed)
            write_run(root, task, "adamw", seed)
            if task != "digits":
                write_run(root, task, "adamw-tuned", seed)
    for seed in (4, 5):
        write_run(root, "digits", "adamw", seed)
        write_run(root, "digits", "metaadamw", seed)
    write_run(root, "etth1", "schedulefree", 2)
    write_run(root, "imdb", "adamw-matched", 1)
    for seed in (1, 2):
        for ablation in ("features-enhanced", "encoder-8x16")[:seed]:
            write_run(root, "etth1", "metaadamw", seed, ablation=ablation)
        for arm in ("adamw", "metaadamw"):
            for factor in (0.5, 2):
                place = f"clean-small/etth1/{arm}+lr-x{factor:g}/seed{seed}"
                write_run(root, "etth1", arm, seed, lr=factor * 1e-3, place=place)
    return collection(root)


def test_table_2_and_the_overview(unequal, made):
    places = made(table2(unequal).commands)
    assert {place for place in places if not is_read_by_others(place)} == directories(unequal.plain)
    tuned = {str(Path(place).parents[1]) for place in places if is_read_by_others(place)}
    assert tuned == {f"runs/clean-small/{task}/adamw-tuned" for task in ("etth1", "imdb")}
    sweeps = [line for line in table2(unequal).commands if line.startswith("metaadamw sweep")]
    # Both and the tuned one on two tasks, both on digits, the matched one, the other one.
    assert len(sweeps) == 4
    arms = ("metaadamw", "adamw", "adamw-tuned", "adamw-matched", "schedulefree")
    own = directories(run for run in unequal.plain if run.cell.arm in arms)
    found = made(overview(unequal, "metaadamw").commands)
    assert {place for place in found if not is_read_by_others(place)} == own


def test_table_3_has_the_arm_as_it_is_and_adamw(unequal, made):
    arms = ("adamw", "metaadamw")
    runs = [r for r in unequal.runs if r.cell.arm in arms and not r.is_rate_variant]
    table = table3(unequal, "metaadamw")
    assert made(table.commands) == directories(runs)


def test_learning_rates(unequal, made):
    arms = ("adamw", "metaadamw")
    runs = [r for r in unequal.runs if r.cell.task == "etth1" and r.cell.arm in arms]
    runs = [r for r in runs if r.cell.ablation is None or r.is_rate_variant]
    table = rates_table(unequal, "etth1")
    assert made(table.commands) == directories(runs)
    assert f"--lr-factors 0.5,2 --seeds 1-2 {OPTIONS} --out runs" in "\n".join(table.commands)


def test_a_variant_without_its_arm_is_a_run_of_its_own(tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "imdb", "metaadamw", 0, ablation="gating-off")
    place = "clean-small/imdb/adamw+lr-x4/seed1"
    write_run(tmp_path / "runs", "imdb", "adamw", 1, lr=4e-3, place=place)
    runs, _ = read_runs([tmp_path / "runs"])
    commands = list(run_commands(runs))
    assert made(commands) == directories(runs)
    assert sorted(commands) == [
        "metaadamw run imdb --arm adamw --lr 0.004 --weight-decay 0.01 --seed 1 "
        f"{OPTIONS} --out runs/clean-small/imdb/adamw+lr-x4/seed1",
        "metaadamw run imdb --arm metaadamw --ablation gating-off --lr 0.001 --weight-decay 0.01 "
        f"--seed 0 {OPTIONS} --out runs/clean-small/imdb/metaadamw+gating-off/seed0",
    ]


def test_options_and_changed_settings_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    online = ARMS["metaadamw-online"].settings(None)
    online["learning"]["lr"] = 0.5
    for arm, settings, changes in (
        ("adamw", {}, {"precision": "bf16", "threads": 2}),
        ("metaadamw", ARMS["metaadamw"].settings(None), {"processes": 2}),
        ("metaadamw-online", online, {}),
    ):
        run = write_run(tmp_path / "runs", "imdb", arm, 0)
        change_json(run / "config.json", arm_settings=settings, **changes)
    runs, left_out = read_runs([tmp_path / "runs"])
    assert left_out == []
    rates = "--lr 0.001 --weight-decay 0.01"
    assert sorted(run_commands(runs)) == [
        f"metaadamw run imdb --arm metaadamw-online {rates} --seed 0 {OPTIONS} "
        "--set learning.lr=0.5 --out runs/clean-small/imdb/metaadamw-online/seed0",
        f"metaadamw sweep --tasks imdb --arms adamw --seeds 0 {OPTIONS} --threads 2 "
        "--precision bf16 --out runs",
        f"torchrun --nproc-per-node 2 -m metaadamw_bench run imdb --arm metaadamw {rates} --seed 0 "
        f"{OPTIONS} --out runs/clean-small/imdb/metaadamw/seed0",
    ]


def test_a_single_matched_run_names_what_it_took(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one", None):
        run = write_run(tmp_path / "runs", "imdb", "adamw-matched", 0, lr=9e-4, place=place)
        change_json(run / "config.json", arm_settings={"mean_alpha": 0.9})
    runs = [
        run for root in ("one", "clean-small") for run in read_runs([tmp_path / "runs" / root])[0]
    ]
    assert list(run_commands(runs)) == [
        f"metaadamw sweep --tasks imdb --arms adamw-matched --seeds 0 {OPTIONS} --out runs",
        "metaadamw run imdb --arm adamw-matched --lr 0.001 --weight-decay 0.01 --mean-alpha 0.9 "
        f"--seed 0 {OPTIONS} --out runs/one",
    ]


def test_learning_rates_of_a_sweep_come_from_one_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        write_run(tmp_path, "etth1", "adamw", seed)
        for factor in (0.25, 4):
            place = f"clean-small/etth1/adamw+lr-x{factor:g}/seed{seed}"
            write_run(tmp_path, "etth1", "adamw", seed, lr=factor * 1e-3, place=place)
    runs, left_out = read_runs([tmp_path])
    assert left_out == []
    assert {(run.cell.ablation, run.rate) for run in runs if run.is_rate_variant} == {
        ("lr-x0.25", 2.5e-4),
        ("lr-x4", 4e-3),
    }
    assert sorted(run_commands(runs))[0] == (
        "metaadamw sweep --tasks etth1 --arms adamw --lr-factors 0.25,4 --seeds 0-1 "
        "--protocol clean --size small --out ."
    )


def test_commands_make_the_runs_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2, 5):
        write_run(tmp_path / "runs", "etth1", "adamw", seed)
    write_run(tmp_path / "runs", "imdb", "metaadamw", 0)
    write_run(tmp_path / "runs", "imdb", "metaadamw", 0, ablation="gating-on")
    write_run(tmp_path / "runs", "imdb", "metaadamw", 0, lr=4e-3, place="one")
    runs, _ = read_runs([tmp_path / "runs"])
    options = "--protocol clean --size small --out"
    assert sorted(run_commands(runs)) == [
        "metaadamw run imdb --arm metaadamw --lr 0.004 --weight-decay 0.01 --seed 0 "
        f"{options} runs/one",
        f"metaadamw sweep --tasks etth1 --arms adamw --seeds 0-2,5 {options} runs",
        "metaadamw sweep --tasks imdb --arms metaadamw --ablations gating-on "
        f"--ablation-arm metaadamw --seeds 0 {options} runs",
        f"metaadamw sweep --tasks imdb --arms metaadamw --seeds 0 {options} runs",
    ]
