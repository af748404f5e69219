"""How many cores a process may use, in containers of both kinds; and that nobody counts otherwise."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

import vla_rl
from vla_rl.runtime import cpus
from vla_rl.runtime.cpus import available_cpus, cpu_quota

V2 = "0::{group}\n"
V1 = "12:pids:/\n4:cpu,cpuacct:{group}\n0::/\n"


class Machine:
    """The files of control groups, as Linux shows them to a process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mount = folder / "sys"
        self.mount.mkdir()
        self._groups, self._mounts = folder / "cgroup", folder / "mountinfo"
        monkeypatch.setattr(cpus, "_CGROUPS", self._groups)
        monkeypatch.setattr(cpus, "_MOUNTS", self._mounts)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def version_2(self, group: str, root: str = "/") -> None:
        self._groups.write_text(V2.format(group=group))
        self._mounts.write_text(
            f"31 23 0:28 / /proc rw - proc proc rw\n"
            f"32 23 0:29 {root} {self.mount} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        )

    def version_1(self, group: str, root: str = "/") -> None:
        self._groups.write_text(V1.format(group=group))
        self._mounts.write_text(
            f"33 32 0:30 {root} {self.mount} rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"34 32 0:31 / {self.mount}/memory rw - cgroup cgroup rw,memory\n"
        )

    def limit(self, group: str, quota: str) -> None:
        """Version 2's file, or version 1's two."""
        folder = self.mount / group
        folder.mkdir(parents=True, exist_ok=True)
        if quota.count(" ") == 1:
            (folder / "cpu.max").write_text(quota + "\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("200000 50000", 4), ("10000 100000", 1), (" ", 8)],
)
def test_a_containers_quota_limits_the_cores(machine: Machine, quota: str, cores: int) -> None:
    machine.version_2("/")
    machine.limit("", quota)
    assert available_cpus() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("200000", 2), ("1000", 1), ("x", 8)])
def test_the_quota_of_version_1_counts_as_well(machine: Machine, quota: str, cores: int) -> None:
    machine.version_1("/docker/abc", root="/docker/abc")  # what a container sees is its own part
    machine.limit("", quota)
    assert available_cpus() == cores


def test_the_strictest_of_the_groups_around_it_counts(machine: Machine) -> None:
    machine.version_2("/user.slice/session-1.scope")
    machine.limit("user.slice/session-1.scope", "max 100000")
    machine.limit("user.slice", "300000 100000")
    assert cpu_quota() == 3.0
    machine.limit("user.slice/session-1.scope", "200000 100000")
    assert cpu_quota() == 2.0


def test_a_group_outside_what_is_mounted_takes_the_mount(machine: Machine) -> None:
    machine.version_2("/../../system.slice")
    machine.limit("", "200000 100000")
    (machine.mount.parent / "cpu.max").write_text("100000 100000")  # not ours to read
    assert available_cpus() == 2


def test_affinity_below_the_quota_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.version_2("/")
    machine.limit("", "600000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert available_cpus() == 3


def test_without_control_groups_all_cores_count(machine: Machine) -> None:
    assert available_cpus() == 8
    assert cpu_quota() is None


def test_nobody_else_counts_cores() -> None:
    """A second way of counting would start 64 simulators in a container of two cores."""
    package = Path(vla_rl.__file__).parent
    counters = {"cpu_count", "sched_getaffinity", "process_cpu_count"}
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in counters)
        or (isinstance(node, ast.Name) and node.id in counters)
    ]
    assert set(found) == {"runtime/cpus.py"}
