"""No configuration field is accepted and then ignored.

Many classes have a `seed` or an `out`, so names alone say nothing: pyright tells of which class each object is whose
attribute is read.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vla_rl
import vla_rl.config

pytestmark = pytest.mark.slow  # pyright reads all that torch is made of
SOURCE = Path(vla_rl.__file__).parent
CLASSES = [
    cls
    for found in pkgutil.iter_modules(vla_rl.config.__path__, "vla_rl.config.")
    for module in [importlib.import_module(found.name)]
    for cls in vars(module).values()
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == found.name
]
FIELDS = {cls.__name__: {field.name for field in dataclasses.fields(cls)} for cls in CLASSES}
NAMES = set().union(*FIELDS.values())
# It is the name of what happens anyway, and is read where it is checked against its opposite.
ONLY_CHECKED = {"ExportConfig": {"merged"}}
Reads = dict[str, set[str]]
"""Names of the attributes that are read, by class."""


class Asking(ast.NodeTransformer):
    """Turns `x.seed` into `reveal_type(x).seed`, so that the type checker says what `x` is."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        if node.attr in NAMES and isinstance(node.ctx, ast.Load):
            node.value = ast.Call(ast.Name("reveal_type"), [node.value], [])
        return node


def asked(source: str) -> str:
    return ast.unparse(ast.fix_missing_locations(Asking().visit(ast.parse(source))))


def questions(source: str) -> dict[tuple[int, int], str]:
    """The attribute that is read of each `reveal_type(x)`, by line and column of `x` as pyright counts them."""
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(
                attr=name, value=ast.Call(func=ast.Name(id="reveal_type"), args=[owner])
            ):
                before = lines[owner.lineno - 1].encode()[: owner.col_offset].decode()
                found[owner.lineno - 1, len(before)] = name
    return found


def attributes_read(package: Path, folder: Path) -> Reads:
    """What `package` reads of which class, outside `config/`, where fields are only declared and checked.

    Everything else that is installed stays unknown: configurations are passed on by our own code, and a checker that
    needs to read torch takes several times as long.
    """
    for path in package.rglob("*.py"):
        copy = folder / package.name / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        copy.write_text(text if package / "config" in path.parents else asked(text), "utf-8")
    settings = {"typeCheckingMode": "off", "useLibraryCodeForTypes": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    answer = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--project", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    asked_in: dict[str, dict[tuple[int, int], str]] = {}
    reads: Reads = {}
    for said in json.loads(answer.stdout)["generalDiagnostics"]:
        kind = re.search(r'^Type of ".*" is "(.*)"$', said["message"], flags=re.DOTALL)
        if kind is None:
            continue
        if said["file"] not in asked_in:
            asked_in[said["file"]] = questions(Path(said["file"]).read_text(encoding="utf-8"))
        start = said["range"]["start"]
        name = asked_in[said["file"]].get((start["line"], start["character"]))
        for cls in FIELDS.keys() & set(re.findall(r"\w+", kind[1])):
            reads.setdefault(cls, set()).update({name} if name else ())
    return reads


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Reads:
    return attributes_read(SOURCE, tmp_path_factory.mktemp("asked"))


def test_every_field_is_read_somewhere(reads: Reads) -> None:
    unread = {cls: fields - reads.get(cls, set()) for cls, fields in FIELDS.items()}
    assert {cls: names for cls, names in unread.items() if names} == ONLY_CHECKED


PROGRAM = """
from dataclasses import replace
from sample.config import PPOConfig, RunConfig, SFTConfig, TrainConfig

class Learner:
    def __init__(self, config: PPOConfig) -> None:
        self.config = config

    def go(self):
        return self.config.epochs, [one.seed for one in runs()]

def runs() -> list[RunConfig]:
    return []

def start(config: TrainConfig, other: SFTConfig | None) -> int:
    run = replace(config, ppo=PPOConfig()).run
    größe = "ä", run.root
    return other.max_grad_norm if other else config.seed
"""


def test_a_field_is_read_of_the_class_that_has_it(tmp_path: Path) -> None:
    """Known answers: others of the same name do not count, and of a union the one that is left."""
    package = tmp_path / "sample"
    (package / "config").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "config" / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass PPOConfig:\n    epochs: int = 1\n    max_grad_norm: float = 1.0\n"
        "@dataclass\nclass SFTConfig:\n    epochs: int = 1\n    max_grad_norm: float = 1.0\n"
        "@dataclass\nclass RunConfig:\n    root: str = ''\n    seed: int = 0\n"
        "@dataclass\nclass TrainConfig:\n    ppo: PPOConfig\n    run: RunConfig\n    seed: int = 0\n"
    )
    (package / "program.py").write_text(PROGRAM)
    assert attributes_read(package, tmp_path / "asked") == {
        "PPOConfig": {"epochs"},
        "SFTConfig": {"max_grad_norm"},
        "RunConfig": {"root", "seed"},
        "TrainConfig": {"run", "seed"},
    }
