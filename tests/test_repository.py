"""Rules of this repository that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vla_rl.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("src", "tests", "benchmarks", "examples", "scripts")
MAX_LINES = 450
MAX_FUNCTION_LINES = 50
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def repository_files() -> list[Path]:
    """Files in git, and new ones that git would not ignore; from a source archive, all but the known products."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        products = {
            ".venv", ".venv-vllm", ".venv-doors", ".venv-maniskill", ".venv-official", ".git", "runs", "site", "dist",
            "build", "__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache", ".import_linter_cache",
        }  # fmt: skip
        paths = [p for p in ROOT.rglob("*") if not products & set(p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")


def sources() -> list[Path]:
    roots = [ROOT / name for name in SOURCES]
    return [
        path
        for path in repository_files()
        if path.suffix in {".py", ".sh"} and any(root in path.parents for root in roots)
    ]


# Written in parts, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": r"/(?:" + "root|work|tmp|Users|" + r"home/[a-z]+)/[\w.]",
    "a package host": r"pypi\." + r"org|pythonhosted\." + r"org|download\.pytorch\." + "org"
    r"|conda\.anaconda\." + r"org|registry\.npmjs\." + "org",
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str):
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in repository_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"{what} stands in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "open('/" + "root/data.txt')"),
        ("a path of one machine", "cd /" + "home/ann/vla-rl"),
        ("a path of one machine", "log to /" + "tmp/run.log"),
        ("a package host", "pip install --index-url https://download.pytorch." + "org/whl/cpu"),
    ],
)
def test_the_patterns_above_find_what_they_are_for(what: str, line: str):
    assert re.search(FORBIDDEN[what], line)


def test_sources_stay_short_and_have_telling_names():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"split these, {MAX_LINES} lines are enough: {long}"
    vague = [
        str(inside)
        for path in sources()
        if VAGUE_NAMES & {path.stem, *(inside := path.relative_to(ROOT)).parts}
    ]
    assert not vague, f"say what lives there: {vague}"


# Functions of more than MAX_FUNCTION_LINES lines, and why they are not split.
LONG_FUNCTIONS = {
    ("train_ppo.py", "train"): "a recipe is read from top to bottom",
    ("config_files.py", "write_checkpoint_config"): "one file's contents, key by key",
    ("test_quickstart.py", "test_quickstart_from_nothing_to_a_report_and_again"): (
        "one quickstart takes half a minute, so everything about it is asked of the same one"
    ),
    ("example_run.py", "_metrics"): "one line of a metrics file, key by key",
    ("tiny_vlm.py", "write_vlm"): "one model's folder, file by file",
}


def long_functions(source: str) -> dict[str, int]:
    """Functions longer than allowed, by name, with their lines; a docstring's lines do not count."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            lines -= len((ast.get_docstring(node, clean=False) or "").splitlines())
            if lines > MAX_FUNCTION_LINES:
                found[node.name] = lines
    return found


def test_a_long_function_has_a_reason():
    long = {
        (path.name, name): lines
        for path in sources()
        if path.suffix == ".py"
        for name, lines in long_functions(path.read_text()).items()
    }
    unexplained = {key: lines for key, lines in long.items() if key not in LONG_FUNCTIONS}
    assert not unexplained, f"split these, or say in LONG_FUNCTIONS why not: {unexplained}"
    assert not LONG_FUNCTIONS.keys() - long, "these need no reason any more"


def test_length_is_counted_without_the_docstring():
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert long_functions("def short():\n" + body.removesuffix("    pass\n")) == {}
    assert long_functions("def long():\n" + body) == {"long": MAX_FUNCTION_LINES + 1}
    told = 'def told():\n    """One.\n\n    Two.\n    """\n'
    assert long_functions(told + body) == {"told": MAX_FUNCTION_LINES + 1}
    assert long_functions(told + body.removesuffix("    pass\n")) == {}


def test_test_files_differ_in_name():
    """pytest imports test files by their base name: two alike would hide each other."""
    names = [path.name for path in sources() if path.name.startswith("test_")]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice


# --- documents


def readme_tree() -> list[Path]:
    """Paths of the annotated tree in the README: indented entries lie in the folder above them."""
    block = (ROOT / "README.md").read_text().split("## What is where")[1].split("```")[1]
    paths, folder = [], Path()
    for line in block.splitlines()[1:]:
        name = line.split()[0] if line.strip() else ""
        if line.startswith("  "):
            paths.append(folder / name)
        elif name:
            folder = Path(name)
            paths.append(folder)
    return paths


def test_readme_tree_is_true():
    tree = readme_tree()
    assert len(tree) > 15
    missing = [str(path) for path in tree if not (ROOT / path).exists()]
    assert not missing, f"the README names {missing}"
    package = ROOT / "src" / "vla_rl"
    rooms = {p.name for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    told = {path.name for path in tree if path.parent == Path("src/vla_rl")}
    assert rooms <= told, f"the README's tree lacks {sorted(rooms - told)}"


def documents() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".md"]


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What a link may point to inside a document: its headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ +(.*?)\s*$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def broken_links(path: Path) -> list[str]:
    """Relative links of a document that lead to no file, or to no heading of one."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(path)):
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        if "://" in link or link.startswith("mailto:"):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    return broken


def test_links_between_documents_lead_somewhere():
    broken = [
        f"{path.relative_to(ROOT)} -> {x}" for path in documents() for x in broken_links(path)
    ]
    assert not broken


def test_broken_links_are_found(tmp_path: Path):
    (tmp_path / "two.md").write_text("# A heading, with `code`\n")
    (tmp_path / "one.md").write_text(
        "[a](two.md) [b](two.md#a-heading-with-code) [c](https://example.org/x#y) [d](#here)\n"
        '[e](three.md) [f](two.md#b) ![g](picture.png "title")\n# Here\n```\n[h](no.md)\n```\n'
    )
    assert broken_links(tmp_path / "one.md") == ["three.md", "two.md#b", "picture.png"]


def test_each_page_is_in_the_contents_and_each_picture_on_a_page():
    contents = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = {f"docs/{name}" for name in re.findall(r"[\w/.-]+\.md", contents)}
    files = {str(path.relative_to(ROOT)) for path in repository_files()}
    pages = {name for name in files if name.startswith("docs/") and name.endswith(".md")}
    assert listed == pages
    shown = {
        str((path.parent / link).resolve().relative_to(ROOT))
        for path in documents()
        for link in re.findall(r"\]\(([^)\s#]+\.png)", path.read_text())
        if "://" not in link
    }
    assert {name for name in files if name.startswith("docs/") and name.endswith(".png")} <= shown


def test_makefile_verbs_of_the_readme_exist():
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for path in documents():
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), flags=re.MULTILINE))
        assert named <= verbs, f"{path.name} names {named - verbs}"


def test_commands_in_the_documents_exist_with_their_options():
    lines = [line for path in documents() for line in path.read_text().splitlines()]
    calls = [call for line in lines for call in re.findall(r"vla-rl ([a-z]+[^`|]*)", line)]
    options: dict[str, set[str]] = {}
    for call in calls:
        words = call.split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        if re.search(r"eval .*ws://", call):  # another one's policy has options of its own
            name = "eval --policy ws://127.0.0.1:8000"
        options.setdefault(name, set()).update(re.findall(r"--[a-z][\w.-]*", call))
    assert {"quickstart", "demos", "sft", "train", "eval", "report", "doctor"} <= set(options)
    for command, used in options.items():
        words = [*command.split(), *(["metaworld-mt5"] if command == "train" else []), "--help"]
        answer = subprocess.run(
            [sys.executable, "-m", "vla_rl", *words],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert answer.returncode == 0, f"vla-rl {command} does not exist"
        missing = {option for option in used if option not in answer.stdout}
        assert not missing, f"vla-rl {command} has no {missing}"


def test_changelog_has_a_place_for_what_is_new():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[Unreleased\]$", changelog, flags=re.MULTILINE)
    assert re.search(r"^### (Added|Changed|Fixed|Removed)$", changelog, flags=re.MULTILINE)


def test_licence_is_the_one_the_package_declares():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["license"] == "Apache-2.0"


# --- the package


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in requirements}


def test_light_install_stays_light():
    base = names(project()["dependencies"])
    assert base.isdisjoint({"metaworld", "mujoco", "pyarrow", "av", "matplotlib", "transformers"})


def test_extras_hold_what_they_promise():
    extras = project()["optional-dependencies"]
    assert {"metaworld", "mujoco"} <= names(extras["metaworld"])
    assert {"pyarrow", "av"} <= names(extras["data"])
    assert {"pytest", "ruff", "pyright", "import-linter"} <= names(extras["dev"])
    own = {"vla-rl"} | set(extras)
    for extra, requirements in extras.items():
        for requirement in requirements:
            if requirement.startswith("vla-rl["):
                parts = requirement[len("vla-rl[") : -1].split(",")
                assert set(parts) <= own, f"{extra} asks for an extra that does not exist"
    everything = names([r for group in extras.values() for r in group] + project()["dependencies"])
    assert "torchvision" not in everything


def test_tested_versions_satisfy_the_package():
    """Each pin of the constraints belongs to something, and torch is not pinned twice."""
    pins = names(
        [
            line
            for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")
        ]
    )
    assert "torch" not in pins, "torch's version stands in scripts/install.py"
    declared = names(
        [r for group in project()["optional-dependencies"].values() for r in group]
        + project()["dependencies"]
    )
    indirect = {"scipy", "gymnasium", "accelerate", "huggingface-hub"}
    assert pins <= declared | indirect


LIGHT = (
    "vla_rl",
    "vla_rl.types",
    "vla_rl.config",
    "vla_rl.envs",
    "vla_rl.data",
    "vla_rl.curriculum",
)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_torch(module: str):
    """Every simulator process imports some of these; torch would cost each of them memory and seconds."""
    code = f"""
import importlib, pkgutil, sys
top = importlib.import_module({module!r})
if {module!r} != "vla_rl":
    for found in pkgutil.walk_packages(getattr(top, "__path__", []), {module!r} + "."):
        importlib.import_module(found.name)
print(*{{"torch", "transformers"}} & set(sys.modules))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []
