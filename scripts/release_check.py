"""Build the wheel and the source archive, and try the wheel: `python scripts/release_check.py [--extra NAME ...]`.

Run it with .venv's Python (`make release-check`). What is cheap is always done: both archives are built into dist/,
their content is compared with the sources, and the wheel, in an environment and an empty folder of its own, says its
version, plans, trains two iterations and writes a report. Third-party packages are .venv's there: nothing is fetched.

--extra NAME also installs the wheel with that extra into a clean environment, from wherever pip looks (none: the light
install). It takes torch first, as scripts/install.py does, and minutes; gigabytes where pip's torch is a CUDA build.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "vla_rl"
IN_SDIST = ("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile")
FOLDER = ("--run.root", ".", "--run.name", "trained")
TRIALS = (  # what each command has to say
    (("--version",), "vla-rl {version}"),
    (("--help",), "quickstart"),
    (("plan", "toy"), "toy"),  # reads measured/*.json
    (("train", "toy", "--schedule.iterations", "2", *FOLDER), "trained"),
    (("report", "trained"), "report.html"),  # reads the page's style, scripts and template
)


class ReleaseError(Exception):
    """The release is not one; the message says what is wrong."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="release_check.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--extra", action="append", default=[], help="try this extra; may be repeated"
    )
    extras = parser.parse_args(arguments).extra
    try:
        require_known_extras(extras)
        version = require_one_version(ROOT)
        wheel, sdist = build(ROOT / "dist")
        check_wheel(wheel, PACKAGE, version)
        check_sdist(sdist, PACKAGE)
        with tempfile.TemporaryDirectory() as folder:
            program = install_beside(wheel, Path(folder) / "venv")
            try_out(program, Path(folder) / "empty", version)
        for extra in extras:
            try_extra(wheel, extra, version)
    except ReleaseError as error:
        print(f"release-check: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrelease-check: stopped", file=sys.stderr)
        return 130
    print(f"release-check: {wheel.name} and {sdist.name} are what they should be")
    return 0


# --------------------------------------------------------------------------------------------------
# What the sources say


def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def require_known_extras(extras: Sequence[str]) -> None:
    known = ["none", *project(ROOT)["optional-dependencies"]]
    for extra in extras:
        if extra not in known:
            raise ReleaseError(f"there is no extra {extra!r}; there are {', '.join(known)}")


def versions(root: Path) -> dict[str, str]:
    """The version, as each file that names it says."""
    patterns = {
        "src/vla_rl/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(\d.*?)\]",  # the newest section that has a number
    }
    found = {"pyproject.toml": project(root)["version"]}
    for name, pattern in patterns.items():
        match = re.search(pattern, (root / name).read_text(), flags=re.MULTILINE)
        found[name] = match.group(1) if match else "none"
    return found


def require_one_version(root: Path) -> str:
    found = versions(root)
    if len(set(found.values())) != 1:
        told = ", ".join(f"{name} says {version}" for name, version in found.items())
        raise ReleaseError(f"files name different versions: {told}")
    return found["pyproject.toml"]


def source_files(package: Path) -> set[str]:
    """Files of the package, as the wheel has to name them."""
    return {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


# --------------------------------------------------------------------------------------------------
# What the archives hold


def build(dist: Path) -> tuple[Path, Path]:
    """The wheel, built from the source archive as installers do, and that archive."""
    shutil.rmtree(dist, ignore_errors=True)
    run("build", [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist)], ROOT)
    wheels, sdists = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        raise ReleaseError(f"expected a wheel and a source archive in {dist}")
    for path in (*wheels, *sdists):
        print(f"  {path.name:<44}{path.stat().st_size / 1024:7.0f} KiB", flush=True)
    return wheels[0], sdists[0]


def check_wheel(wheel: Path, package: Path, version: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"vla_rl-{version}.dist-info"
        inside = {name for name in names if not name.startswith(f"{info}/")}
        sources = source_files(package)
        if inside != sources:
            raise ReleaseError(
                f"the wheel lacks {sorted(sources - inside)} and has {sorted(inside - sources)} that no source is"
            )
        for name in (f"{info}/METADATA", f"{info}/entry_points.txt", f"{info}/licenses/LICENSE"):
            if name not in names:
                raise ReleaseError(f"the wheel lacks {name}")
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        if metadata["Version"] != version or metadata["License-Expression"] != "Apache-2.0":
            raise ReleaseError(
                f"the wheel says {metadata['Version']}, {metadata['License-Expression']}"
            )
        if "vla-rl = vla_rl.cli:main" not in archive.read(f"{info}/entry_points.txt").decode():
            raise ReleaseError("the wheel installs no command vla-rl")


def check_sdist(sdist: Path, package: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"src/{name}" for name in source_files(package)} | set(IN_SDIST)
    if not wanted <= names:
        raise ReleaseError(f"the source archive lacks {sorted(wanted - names)}")
    strays = sorted(n for n in names if n.split("/")[0] in {".venv", "runs", "dist", ".git", ".ci"})
    if strays:
        raise ReleaseError(f"the source archive holds {strays[:5]}")


# --------------------------------------------------------------------------------------------------
# Trying it


def install_beside(wheel: Path, venv: Path) -> Path:
    """Install the wheel alone into a new environment that sees this Python's other packages; its `vla-rl`."""
    run("environment", [sys.executable, "-m", "venv", "--without-pip", str(venv)], ROOT)
    python = venv / "bin" / "python"
    pip(python, ["--no-deps", "--no-index", str(wheel)])
    ours = sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)})
    # A plain path: what makes the checkout importable in .venv is a .pth file there, which is not read from here.
    Path(ours, "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "vla-rl"


def try_extra(wheel: Path, extra: str, version: str) -> None:
    """Install the wheel with one extra into a clean environment, and do there what the light install can."""
    torch = re.search(r'^TORCH_VERSION = "(.+)"$', (ROOT / "scripts/install.py").read_text(), re.M)
    if torch is None:
        raise ReleaseError("scripts/install.py names no version of torch")
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        run("environment", [sys.executable, "-m", "venv", "--without-pip", str(venv)], ROOT)
        python = venv / "bin" / "python"
        pip(python, [f"torch=={torch[1]}"])
        pip(python, [str(wheel) if extra == "none" else f"{wheel}[{extra}]"])
        size = sum(p.stat().st_size for p in venv.rglob("*") if p.is_file() and not p.is_symlink())
        print(f"  {'extra ' + extra:<44}{size / 2**20:7.0f} MiB installed", flush=True)
        try_out(venv / "bin" / "vla-rl", Path(folder) / "empty", version)


def try_out(program: Path, empty: Path, version: str) -> None:
    empty.mkdir()
    code = "import vla_rl; print(vla_rl.__file__)"
    where = run("import", [str(program.parent / "python"), "-c", code], empty).strip()
    if not Path(where).is_relative_to(program.parent.parent):
        raise ReleaseError(f"tried {where} instead of the wheel")
    for arguments, expected in TRIALS:
        said = run(" ".join(arguments), [str(program), *arguments], empty)
        if expected.format(version=version) not in said:
            raise ReleaseError(f"vla-rl {' '.join(arguments)} did not say {expected!r}:\n{said}")
    page = (empty / "trained" / "report.html").read_text()
    for name in ("style.css", "page.js"):
        asset = (PACKAGE / "report" / "page" / name).read_text()
        if asset.strip() not in page:
            raise ReleaseError(f"the report does not hold {name}")


def pip(python: Path, arguments: Sequence[str]) -> None:
    quiet = ["-q", "--disable-pip-version-check", "--no-input", "--prefer-binary"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet]
    run(f"pip install {' '.join(Path(a).name for a in arguments)}", [*command, *arguments], ROOT)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would let Python find the checkout instead of the wheel."""
    return {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def run(name: str, command: Sequence[str], folder: Path) -> str:
    """What `command` prints; its name and its seconds on one line here."""
    started = time.perf_counter()
    answer = subprocess.run(
        command,
        cwd=folder, env=clean_environment(os.environ), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(f"  {name[:43]:<44}{time.perf_counter() - started:7.0f} s", flush=True)
    if answer.returncode != 0:
        raise ReleaseError(f"{name} failed:\n{answer.stdout[-3000:]}")
    return answer.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
