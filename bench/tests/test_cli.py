import io
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import metaadamw
from metaadamw import fine_grained_groups, group_table
from metaadamw_bench import cli

MAIN = "from metaadamw_bench.cli import main; main()"


@pytest.fixture
def run(capsys):
    """Run the command line in this process; returns exit code, standard output, standard error."""

    def call(*arguments):
        threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        torch.set_num_threads(threads)
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return call


def build_model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


model = build_model()


def not_a_model():
    return 5


def fails():
    raise RuntimeError("no weights\nat hand")


def test_no_command_shows_the_help(run):
    code, out, _ = run()
    assert code == 0
    assert "demo" in out
    assert "inspect" in out


def test_a_group_of_commands_alone_shows_its_help(run):
    code, out, err = run("data")
    assert (code, err) == (2, "")
    assert "fetch" in out


@pytest.mark.parametrize("command", ["demo", "inspect"])
def test_help_of_each_command_shows_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"metaadamw {command}" in out


def test_version(run):
    assert run("--version") == (0, f"metaadamw {metaadamw.__version__}\n", "")


@pytest.mark.parametrize("attribute", ["build_model", "model"])
def test_inspect_prints_the_table_of_groups(run, attribute):
    code, out, _ = run("inspect", f"{__name__}:{attribute}")
    assert code == 0
    assert out.rstrip("\n") == group_table(fine_grained_groups(build_model()))
    assert "convolution.shallow.weight" in out


def test_inspect_with_the_kinds_of_the_paper(run):
    _, out, _ = run("inspect", f"{__name__}:model", "--kinds", "paper")
    assert out.rstrip("\n") == group_table(fine_grained_groups(model, kinds="paper"))


def test_inspect_finds_modules_in_the_current_directory(tmp_path):
    (tmp_path / "own_model.py").write_text("from torch import nn\n\nnet = nn.Linear(2, 1)\n")
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "inspect", "own_model:net"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "feed_forward.middle.weight" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["demo", "--sede", "3"], 2, "No such option"),
        (["demo", "--seeds", "0"], 2, "--seeds"),
        (["demo", "--steps", "-1"], 2, "--steps"),
        (["demo", "--threads", "none"], 2, "--threads"),
        (["demo", "--task", "mnist"], 2, "'mnist' is not one of digits, pydoc"),
        (["demo", "--out", __file__], 2, "is a file"),
        (["demo", "--out", f"{__file__}/below"], 1, "Not a directory"),
        (["inspect"], 2, "MODULE:FACTORY"),
        (["inspect", "torch.nn"], 2, "'torch.nn' is not of this form, and no task"),
        (["inspect", "no_such_module:build"], 1, "No module named 'no_such_module'"),
        (["inspect", "torch.nn:NoSuch"], 1, "has no attribute 'NoSuch'"),
        (["inspect", "torch.nn:Linear"], 1, "cannot be called without arguments"),
        (["inspect", f"{__name__}:fails"], 1, "RuntimeError: no weights at hand"),
        (["inspect", f"{__name__}:not_a_model"], 1, "returned a int"),
        (["inspect", "torch.nn:ReLU"], 1, "no trainable parameter"),
        (["inspect", f"{__name__}:model", "--kinds", "all"], 2, "--kinds"),
    ],
)
def test_errors_take_one_line(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert found == code
    assert out == ""
    assert err.startswith("metaadamw: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback(run, before):
    words = ["inspect", "no_such_module:build"]
    code, _, err = run(*(["--debug", *words] if before else [*words, "--debug"]))
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("metaadamw: ")


def test_interruption(run, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("metaadamw_bench.demo.run_demo", interrupt)
    code, _, err = run("demo")
    assert (code, err) == (130, "metaadamw: interrupted\n")


def test_interruption_while_the_commands_are_imported(run, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    code, _, err = run("arms")
    assert (code, err) == (130, "metaadamw: interrupted\n")


@pytest.mark.parametrize("words", [["arms"], ["arms", "--json"], ["--help"]], ids=" ".join)
def test_an_encoding_without_greek_letters(words, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(words)
    sys.stdout.flush()
    assert exit_info.value.code == 0
    assert b"MetaAdamW" in written.getvalue()
    assert b"?" in written.getvalue()


def test_missing_extra_says_what_to_install():
    # A None in sys.modules makes Python treat the module as not installed.
    code = f"import sys; sys.modules['typer'] = None; {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install . ./bench" in done.stderr
    assert "typer" in done.stderr


@pytest.mark.parametrize(
    ("options", "tasks", "seeds", "steps"),
    [
        (["--task", "digits", "--seeds", "2", "--steps", "12"], ["digits"], 2, 12),
        (["--seeds", "1", "--steps", "1"], ["digits", "pydoc"], 1, 1),
    ],
)
def test_demo_leaves_table_picture_and_numbers(run, tmp_path, options, tasks, seeds, steps):
    out = tmp_path / "new" / "demo"
    code, printed, _ = run("demo", *options, "--out", str(out))
    assert code == 0
    for expected in (*tasks, "single", "do not prove", "demo.png", "demo.json"):
        assert expected in printed
    assert ("±" in printed) == (seeds > 1)
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")

    numbers = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    assert list(numbers["tasks"]) == tasks
    assert len(numbers["summaries"]) == len(tasks) * 3
    assert len(numbers["runs"]) == len(tasks) * 3 * seeds
    for entry in numbers["runs"]:
        assert len(entry["losses"]) == steps
        assert len(entry["alpha"]) == (0 if entry["arm"] == "adamw" else steps)
        assert entry["meta_updates"] == (entry["arm"] == "metaadamw" and steps >= 10)
