"""Names, wrong ones, and that none of them waits for torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench.tests.running import environment
from hypothesis import given
from hypothesis import strategies as st

from metaadamw_bench import arms, cli, names
from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.data import get_data_set
from metaadamw_bench.tasks import get_task

SOURCE = Path(cli.__file__).parents[1]


def test_the_names_are_those_of_what_there_is():
    assert tuple(arms.ARMS) == names.ARMS
    assert [get_task(name).name for name in names.TASKS] == list(names.TASKS)
    assert all(get_data_set(name) for name in names.DATA_SETS)
    assert set(names.DEMO_TASKS) <= set(names.TASKS)


@given(st.data())
def test_one_wrong_letter_suggests_the_name(data):
    allowed = data.draw(st.sampled_from([names.ARMS, names.TASKS, tuple(ABLATIONS)]))
    name = data.draw(st.sampled_from(allowed))
    at = data.draw(st.integers(0, len(name) - 1))
    typed = data.draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],  # left out
                name[:at] + "z" + name[at:],  # too many
                name[:at] + "z" + name[at + 1 :],  # another
                name.upper(),
                name.replace("-", "_"),
            ]
        )
    )
    if typed not in allowed:
        found = names.nearest(typed, allowed)
        # What is as near may be meant as well: frequency-10 less its last letter is frequency-1's.
        assert found in allowed
        assert found == name or abs(len(found) - len(name)) <= 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("adam", "adamw"),
        ("AdamW", "adamw"),
        ("metaadam", "metaadamw"),
        ("two-horizons", "metaadamw-two-horizons"),
        ("schedule-free", "schedulefree"),
        ("sgd", None),
        ("", None),
    ],
)
def test_the_nearest_arm(typed, meant):
    assert names.nearest(typed, names.ARMS) == meant


@pytest.fixture
def refused(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        error = capsys.readouterr().err
        assert (exit_info.value.code, error.count("\n")) in ((2, 1), (1, 1))
        return error

    return call


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("run digts", "digits"),
        ("run wikitext-2", "wikitext2"),
        ("run digits --arm metadamw", "metaadamw"),
        ("run digits --ablation gating-one", "gating-on"),
        ("run digits --set learning.evry=3", "learning.every"),
        ("inspect cifar", "cifar10"),
        ("doctor --task imbd", "imdb"),
        ("demo --task digit", "digits"),
        ("data fetch multi30", "multi30k"),
        ("sweep --tasks digits,pydocs --arms adamw", "pydoc"),
        ("sweep --tasks digits --arms adamw,muonn", "muon"),
        ("sweep --tasks digits --arms adamw --ablations encoder-8x8", "encoder-8x16"),
        ("sweep --tasks digits --arms adamw --ablation-arm metaadamw-papr", "metaadamw-paper"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(words, meant, refused):
    assert f"did you mean {meant!r}?" in refused(*words.split())


def test_a_wrong_directory_of_a_report(refused, tmp_path):
    (tmp_path / "results").mkdir()
    error = refused("report", tmp_path / "resuls")
    allowed = " is not a directory, nor a packed file (*.tar.xz)"
    assert error.endswith(f"resuls{allowed}; did you mean 'results'?\n")
    assert refused("report", tmp_path / "none" / "results").endswith(f"{allowed}\n")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ('tasks = ["digts"]', "digits"),
        ('arms = ["adamw", "prodigi"]', "prodigy"),
        ('ablations = ["gating-onn"]', "gating-on"),
        ('ablation_arm = "metaadamw-radom"', "metaadamw-random"),
        ('protocol = "claen"', "clean"),
        ("seed = [0]", "seeds"),
    ],
)
def test_a_wrong_name_in_a_sweep_file(line, meant, refused, tmp_path):
    lines = {"tasks": 'tasks = ["digits"]', "arms": 'arms = ["adamw"]', line.split()[0]: line}
    (tmp_path / "sweep.toml").write_text("\n".join(lines.values()))
    error = refused("sweep", tmp_path / "sweep.toml", "--out", tmp_path / "runs", "--dry-run")
    assert f"did you mean {meant!r}?" in error


# What the bench must not import, on the way to what it is asked for. The library imports torch, and
# the bench lies beneath it: a bare package stands in its place, until the bench has one of its own.
WITHOUT_THE_LIBRARY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from metaadamw_bench import cli
try:
    cli.main()
finally:
    heavy = {"torch", "numpy", "matplotlib", "scipy", "sklearn", "ray"}
    print("imported:", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def imported(*words, **variables):
    """Standard output, and what was imported for it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_LIBRARY, SOURCE, *words],
        env=environment(COLUMNS="200", **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, re.search("imported:(.*)", done.stderr)[1].split()


COMMANDS = (
    *("demo", "inspect", "tasks", "arms", "data", "run"),
    *("watch", "sweep", "report", "pack", "doctor"),
)


@pytest.mark.parametrize(
    "words",
    [["--help"], *([command, "--help"] for command in COMMANDS), ["data", "fetch", "--help"]],
    ids=" ".join,
)
def test_help_imports_no_torch(words):
    out, heavy = imported(*words)
    assert "Usage" in out
    assert heavy == []


def test_every_command_is_in_the_list():
    import metaadamw_bench.commands as commands

    assert set(COMMANDS) == set(commands.__all__) - {"app"}


def test_the_version_imports_no_torch():
    out, heavy = imported("--version")
    assert re.fullmatch(r"metaadamw \d+\.\d+\.\d+\S*\n", out)
    assert heavy == []


@pytest.mark.parametrize(
    "words", [["run", "digts"], ["run", "digits", "--arm", "adam"], ["frobnicate"]]
)
def test_a_mistake_imports_no_torch(words):
    assert imported(*words) == ("", [])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("metaadamw ru", "run"),
        ("metaadamw run wiki", "wikitext2"),
        ("metaadamw run digits --arm metaadamw-o", "metaadamw-online"),
        ("metaadamw run digits --ablation gating-o", "gating-off"),
    ],
)
def test_completion_imports_no_torch(shell, typed, offered):
    out, heavy = imported(
        _METAADAMW_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_ARGS=typed,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(typed.split()) - 1),
    )
    assert offered in re.split(r'[\s":]+', out)
    assert heavy == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_imports_no_torch(shell):
    out, heavy = imported(_METAADAMW_COMPLETE=f"source_{shell}")
    assert "_METAADAMW_COMPLETE" in out
    assert heavy == []
