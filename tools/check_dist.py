"""Check what `make dist` has built: contents, metadata, and that it works where nothing else is.

`python tools/check_dist.py DIST` reads both wheels and sdists of a directory, installs the library
into an empty environment, where pip brings torch alone, runs the loop of the README there, then
adds the bench. The first thing that is wrong ends it with an exit code other than 0.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
NEEDED = {
    "metaadamw": {"py.typed", "modulators/carried.json"},
    "metaadamw_bench": {"cli.py", "report/style.css"},
}
"""Files that no import would miss at once."""

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    if not module.name.startswith(sys.argv[2]) and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(f"every module of {package.__name__} imports")
"""


def main(directory: Path) -> None:
    """Check the distributions of a directory."""
    library = check_contents(directory, "metaadamw", ROOT / "src")
    bench = check_contents(directory, "metaadamw_bench", ROOT / "bench" / "src")
    with tempfile.TemporaryDirectory() as temporary:
        check_installed(Path(temporary), library, bench)
    print("the distributions are complete")


def check_contents(directory: Path, package: str, source: Path) -> Path:
    """Compare wheel and sdist with the source tree; the wheel."""
    (wheel,) = directory.glob(f"{package}-*.whl")
    (sdist,) = directory.glob(f"{package}-*.tar.gz")
    version = wheel.name.split("-")[1]
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    must = {f"{package}/{name}" for name in NEEDED[package]}
    same(must & expected, must, f"{source}: files that must be there")

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{package}-{version}.dist-info/METADATA").decode()
    info = f"{package}-{version}.dist-info"
    same({PurePosixPath(name).parts[0] for name in names}, {package, info}, f"top of {wheel}")
    same({name for name in names if not name.startswith(info)}, expected, f"files of {wheel}")
    same({f"{info}/licenses/LICENSE"} - names, set(), f"licence missing in {wheel}")

    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    same({name for name in inside if name.startswith("src/")}, {f"src/{name}" for name in expected},
         f"source files of {sdist}")  # fmt: skip
    same({"pyproject.toml", "README.md", "LICENSE"} - inside, set(), f"missing in {sdist}")

    fields = HeaderParser().parsestr(metadata)
    text = (source / package / "__init__.py").read_text(encoding="utf-8")
    declared = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    assert declared is not None
    same(fields["Version"], declared[1], f"version of {wheel}")
    if package == "metaadamw":
        needs = [need for need in fields.get_all("Requires-Dist", []) if "extra ==" not in need]
        same(needs, ["torch>=2.6"], f"what {wheel} needs")
    return wheel


def check_installed(place: Path, library: Path, bench: Path) -> None:
    """Use the wheels in an environment that has nothing else."""
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object) -> str:
        command = [str(word) for word in words]
        done = subprocess.run(command, cwd=place, env=clean, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            sys.exit(f"check_dist: {' '.join(command)!r} ended with {done.returncode}")
        return done.stdout

    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    run(*pip, library)
    run(python, "-c", IMPORT_ALL, "metaadamw", "metaadamw.integrations.")  # those need frameworks
    block = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block is not None, "README.md has no Python block"
    (place / "readme.py").write_text(block[1], encoding="utf-8")
    run(python, "readme.py")
    print("the loop of the README runs with torch alone")

    run(*pip, bench)
    run(python, "-c", IMPORT_ALL, "metaadamw_bench", "-")
    version = library.name.split("-")[1]
    same(run(python.parent / "metaadamw", "--version"), f"metaadamw {version}\n", "the command")


def same(found: object, expected: object, what: str) -> None:
    """Stop where two things differ; of sets only the difference is of interest."""
    if found == expected:
        return
    if isinstance(found, set) and isinstance(expected, set):
        found, expected = sorted(found - expected), sorted(expected - found)
    sys.exit(f"check_dist: {what}: found {found}, expected {expected}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
