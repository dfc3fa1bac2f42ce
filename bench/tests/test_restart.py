"""What is there is neither dropped nor repeated unasked: done runs, and checkpoints of no use."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bench.tests.running import metaadamw as in_a_process
from bench.tests.running import numbers
from bench.tests.test_resume import NEVER, OFTEN, request, run_until

from metaadamw_bench import cli, resuming
from metaadamw_bench.resuming import UnusableCheckpoint
from metaadamw_bench.runs import RunOptions, execute

RUN = ["run", "digits", "--arm", "adamw", "--max-steps", "12", "--quiet"]
RESTART = RunOptions(shown=False, checkpoint_seconds=1e9, restart=True)


@pytest.fixture
def metaadamw(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        output = capsys.readouterr()
        return exit_info.value.code or 0, output.out, output.err

    return call


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def cut(checkpoint):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])


def one_byte(checkpoint):  # of the weights: nothing but its checksum tells
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 0xFF
    checkpoint.write_bytes(content)


def changed(change):
    def damage(checkpoint):
        content = torch.load(checkpoint, weights_only=True)
        torch.save(change(content), checkpoint)

    return damage


def written_by(**versions):
    others = list((resuming.VERSIONS | versions).values())
    return changed(lambda content: {**content, "key": [content["key"][0], *others]})


def without(*path):
    def change(content):
        *above, last = path
        place = content
        for name in above:
            place = place[name]
        del place[last]
        return content

    return changed(change)


DAMAGES = {
    "cut": (cut, "cannot be used", 11),
    "one byte": (one_byte, "the checksum of", 11),
    "empty": (lambda checkpoint: checkpoint.write_bytes(b""), "not a zip file", 11),
    "no archive": (lambda checkpoint: checkpoint.write_bytes(b"none"), "not a zip file", 11),
    "no object": (changed(lambda content: [1, 2]), "it holds a list", 11),
    "no key": (without("key"), "it is none of a run", 11),
    "another torch": (written_by(torch="1.13.1"), "metaadamw {metaadamw} and torch 1.13.1", 11),
    "another metaadamw": (written_by(metaadamw="0.0.1"), "metaadamw 0.0.1 and torch {torch}", 11),
    "another run": (
        changed(lambda content: {**content, "key": ["0" * 16, *content["key"][1:]]}),
        "of a run with other settings",
        11,
    ),
    "journal lost": (
        lambda checkpoint: checkpoint.with_name("metrics.jsonl").unlink(),
        "metrics.jsonl has lost some",
        11,
    ),
    "journal cut": (
        lambda checkpoint: checkpoint.with_name("seconds.jsonl").write_text(""),
        "seconds.jsonl has lost some",
        11,
    ),
    "no weights": (without("trainer", "model", "blocks.0.conv.weight"), "blocks.0.conv.weight", 11),
    "no lengths": (without("lengths"), "it is none of a run", 11),
    "no standing": (without("standing"), "standing", 11),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    execute(request("adamw"), directory, NEVER)
    return directory


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in step 12; its checkpoint is of step 11."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        run_until(12, request("adamw"), directory, OFTEN, patch)
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_cannot_be_used_ends_the_run_and_stays(damage, stopped, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    spoil, message, step = DAMAGES[damage]
    spoil(run / "checkpoint.pt")
    before = contents(run)
    for _ in range(2):  # again and again, not only for the first time
        with pytest.raises(UnusableCheckpoint) as error_info:
            execute(request("adamw"), run, OFTEN)
        said = str(error_info.value)
        assert said.startswith(f"{run / 'checkpoint.pt'} cannot be used: ")
        assert message.format(**resuming.VERSIONS) in said
        assert f"; {step} steps" in said or f"; {step + 1} steps" in said
        assert "would be lost: give --restart" in said
        assert "\n" not in said
        assert contents(run) == before
    execute(request("adamw"), run, RESTART)
    assert numbers(run) == numbers(whole)


def test_what_is_lost_is_said_though_nothing_can_be_read(stopped, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (run / "metrics.jsonl").unlink()
    (run / "checkpoint.pt").write_bytes(b"none")
    with pytest.raises(UnusableCheckpoint, match="all that it has done would be lost"):
        execute(request("adamw"), run, OFTEN)


def test_a_checkpoint_that_can_be_used_is_dropped_when_asked_for(stopped, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    with pytest.MonkeyPatch.context() as patch:
        run_until(3, request("adamw"), run, RESTART, patch)
    assert not (run / "checkpoint.pt").exists()
    execute(request("adamw"), run, NEVER)
    assert numbers(run) == numbers(whole)


def test_the_command_says_it_and_restarts(metaadamw, tmp_path):
    execute_in = [*RUN, "--out", tmp_path / "run"]
    assert metaadamw(*execute_in)[0] == 0
    (tmp_path / "run" / "summary.json").unlink()
    written_by(torch="2.0.0")(tmp_path / "run" / "checkpoint.pt")
    code, out, err = metaadamw(*execute_in)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "torch 2.0.0" in err
    assert "12 steps (" in err
    assert "--restart" in err
    code, out, err = metaadamw(*execute_in, "--restart")
    assert (code, err) == (0, "")
    assert "already done" not in out


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("arm", ["adamw", "metaadamw-online"])
def test_a_run_that_is_done_says_so(arm, quiet, metaadamw, tmp_path):
    words = ["run", "digits", "--arm", arm, "--max-steps", 5, "--out", tmp_path / "run"]
    words += ["--quiet"] if quiet else []
    code, first, _ = metaadamw(*words)
    assert code == 0
    assert "already done" not in first
    before = contents(tmp_path / "run")
    for _ in range(2):
        code, again, _ = metaadamw(*words)
        assert code == 0
        assert again.startswith(first.removesuffix("\n"))
        assert str(tmp_path / "run") in again
        assert "already done" in again
        assert "--restart" in again
        assert contents(tmp_path / "run") == before
    same = numbers(tmp_path / "run")
    code, anew, _ = metaadamw(*words, "--restart")
    assert code == 0
    assert "already done" not in anew
    assert contents(tmp_path / "run") != before  # the seconds at least
    assert numbers(tmp_path / "run") == same


def test_another_run_stays_even_if_a_restart_is_asked_for(metaadamw, tmp_path):
    metaadamw(*RUN, "--out", tmp_path)
    before = contents(tmp_path)
    code, _, err = metaadamw(*RUN, "--seed", 1, "--out", tmp_path, "--restart")
    assert code == 1
    assert "holds a run with another seed" in err
    assert contents(tmp_path) == before


def test_a_sweep_goes_on_with_the_others_and_restarts_what_is_not_done(tmp_path):
    words = ["sweep", "--tasks", "digits", "--arms", "adamw", "--seeds", "0-2", "--max-steps", 4]
    words += ["--out", tmp_path, "--keep-checkpoints"]
    assert in_a_process(*words).returncode == 0
    place = tmp_path / "clean-small" / "digits" / "adamw"
    whole = numbers(place / "seed1")
    (place / "seed1" / "summary.json").unlink()
    written_by(torch="2.0.0")(place / "seed1" / "checkpoint.pt")
    shutil.rmtree(place / "seed2")
    done = in_a_process(*words)
    assert done.returncode == 1
    assert "1 already done, 2 to do" in done.stderr
    (failed,) = (line for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert "seed 1" in failed
    assert "torch 2.0.0" in failed
    assert "--restart" in failed
    assert json.loads((place / "seed2" / "summary.json").read_text())["status"] == "finished"
    before = contents(place / "seed0")
    assert in_a_process(*words, "--restart").returncode == 0
    assert contents(place / "seed0") == before
    assert numbers(place / "seed1") == whole


def test_a_tuned_run_restarts_without_its_grid(metaadamw, tmp_path):
    words = ["run", "digits", "--arm", "adamw-tuned", "--max-steps", 3, "--quiet"]
    words += ["--out", tmp_path]
    assert metaadamw(*words)[0] == 0
    grid = contents(tmp_path / "tuning")
    stopped = sorted((tmp_path / "tuning").glob("*/"))[0]
    assert "already done" in metaadamw(*words)[1]
    (stopped / "summary.json").unlink()
    cut(stopped / "checkpoint.pt")
    code, _, err = metaadamw(*words)
    assert code == 1
    assert str(stopped / "checkpoint.pt") in err
    assert metaadamw(*words, "--restart")[0] == 0
    again = contents(tmp_path / "tuning")
    assert again.keys() == grid.keys()
    others = [path for path in grid if stopped not in path.parents]
    assert all(again[path] == grid[path] for path in others)
