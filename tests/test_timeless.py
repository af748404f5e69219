"""No test of this repository may depend on how fast the machine is, or how busy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
CLOCKS = {
    f"{clock}{unit}"
    for clock in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for unit in ("", "_ns")
} | {"timeit", "default_timer"}


def reads_a_clock(tree: ast.AST, readings: set[str]) -> bool:
    """Whether a clock, or a variable that holds what one showed, is part of an expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in readings:
            return True
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in CLOCKS:
                return True
    return False


def clock_readings(tree: ast.AST) -> set[str]:
    """Variables that hold what a clock showed, or what was worked out from it."""
    found: set[str] = set()
    while True:
        more = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            and node.value is not None
            and reads_a_clock(node.value, found)
            for assigned in (node.targets if isinstance(node, ast.Assign) else [node.target])
            for target in ast.walk(assigned)
            if isinstance(target, ast.Name)
        }
        if more <= found:
            return found
        found |= more


def timed_statements(source: str) -> list[int]:
    """Lines that set a deadline for examples or for another process, or assert something about a clock."""
    tree = ast.parse(source)
    lines = [line for node in ast.walk(tree) for line in deadlines(node)]
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for function in functions:
        readings = clock_readings(function)
        lines += [
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Assert) and reads_a_clock(node.test, readings)
        ]
    return sorted(set(lines))


WAITING = {"run", "call", "check_call", "check_output", "communicate", "wait", "join"}


def deadlines(node: ast.AST) -> list[int]:
    """What hangs is ended by the time limit in pyproject.toml, which is there for nothing else."""
    if not isinstance(node, ast.Call):
        return []
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return [
        keyword.value.lineno
        for keyword in node.keywords
        if keyword.arg == "deadline" or (keyword.arg == "timeout" and name in WAITING)
    ]


def test_no_test_has_a_deadline_or_asserts_a_wall_time():
    timed = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != TESTS / "conftest.py"  # where the one profile without deadlines is made
        for line in timed_statements(path.read_text())
    ]
    assert not timed, "a busy machine would fail these: " + ", ".join(timed)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("@settings(max_examples=3, deadline=200)\ndef test_it(): ...", [1]),
        ("def test_it():\n    start = perf_counter()\n    assert time.perf_counter() - start < 1", [3]),
        (
            "def test_it():\n"
            "    start = time.monotonic()\n"
            "    work()\n"
            "    took = time.monotonic() - start\n"
            "    assert 0 < took < 1",
            [5],
        ),
        ("def test_it():\n    subprocess.run(command, check=True,\n        timeout=60)", [3]),
        ("def test_it():\n    assert timeit.timeit(work) < 1", [2]),
        ("def test_it():\n    name = time.strftime('%Y')\n    assert name", []),
        ("def test_it():\n    start = time.time()\n    assert work()", []),
    ],
)  # fmt: skip
def test_the_check_above_finds_what_it_is_for(source: str, lines: list[int]):
    assert timed_statements(source) == lines


def test_the_profile_in_use_knows_no_time():
    assert settings.default is not None
    assert settings.default.deadline is None
