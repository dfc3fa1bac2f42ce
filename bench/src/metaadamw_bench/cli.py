"""The command ``metaadamw``: what goes wrong is said on one line.

The commands themselves are in ``commands.py``, imported only once it is clear that the extra
``[bench]`` is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
import traceback
from collections.abc import Sequence

from metaadamw_bench.printable import ENCODING_ERRORS

__all__ = ["main"]

# What the extra [bench] brings that the commands cannot do without.
_NEEDED = ("matplotlib", "numpy", "rich", "sklearn", "typer")
_INTERRUPTED = 130
# How Python opens standard output and standard error.
_ENDING = ("strict", "backslashreplace")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

    Args:
        arguments: the words after the program's name, ``sys.argv`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        # What an encoding cannot say shows in another form, rather than ending the command.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _ENDING:
            stream.reconfigure(errors=ENCODING_ERRORS)
    sys.exit(_run([word for word in words if word != "--debug"], debug))


def _run(words: list[str], debug: bool) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(
            f"{', '.join(missing)} not installed; "
            "the command line needs: pip install . ./bench in a clone of metaadamw"
        )
    try:
        app = importlib.import_module("metaadamw_bench.commands").app
        code: int | None = app(words or ["--help"], prog_name="metaadamw", standalone_mode=False)
        return _fail("interrupted", code) if code == _INTERRUPTED else code or 0
    except KeyboardInterrupt:  # before the app could take it for an exit code
        return _fail("interrupted", _INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        # Wrong usage is one of click's exceptions, whose module differs between typer's versions.
        usage = getattr(error, "format_message", None)
        if usage is not None:
            code = getattr(error, "exit_code", 2)
            # Without a message the help has been shown, as by a group without its command.
            return _fail(f"{said} (see metaadamw --help)", code) if (said := usage()) else code
        return _fail(str(error) or type(error).__name__)


def _fail(message: str, code: int = 1) -> int:
    print("metaadamw:", " ".join(message.split()), file=sys.stderr)
    return code
