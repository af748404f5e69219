"""What each command needs beside the light install, asked for before it begins its work.

What a checkpoint turns out to need (LoRA, a download, the simulator it was trained in) is asked for when it is opened,
which comes first in a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vla_rl.config.run import tracker_names
from vla_rl.runtime.extras import installed, need
from vla_rl.runtime.trackers.packages import packages_of

Modules = Callable[[Any], Iterable[str]]
DATASETS = ("pyarrow", "av")
VIDEOS = ("av",)
DOORS = ("websockets", "msgpack")


def _datasets(_: Any) -> Iterable[str]:
    return DATASETS


def _plots(_: Any) -> Iterable[str]:
    return ("matplotlib",)


def _simulator(suite: str) -> tuple[str, ...]:
    from vla_rl.envs.gymnasium.options import is_gymnasium
    from vla_rl.envs.registry import benchmark
    from vla_rl.envs.suites import suite_parts

    if any(map(is_gymnasium, suite_parts(suite))) and not installed("gymnasium"):
        return ("gymnasium",)  # without it nothing can be said about the suite
    benchmark(suite)  # says which part is wrong
    found = [benchmark(part).installation for part in suite_parts(suite)]
    return tuple(dict.fromkeys(one.module for one in found if one is not None))


def _quickstart(config: Any) -> Iterable[str]:
    from vla_rl.recipes.presets import preset

    return (*_simulator(preset(config.preset).env.suite), *DATASETS, "PIL")


def _train(config: Any) -> Iterable[str]:
    videos = VIDEOS if config.eval.videos > 0 else ()
    refresh = DATASETS if config.reward.refresh_every > 0 else ()
    trackers = packages_of(tracker_names(config.run.trackers))
    return (*_simulator(config.env.suite), *videos, *refresh, *trackers)


def _evaluate(config: Any) -> Iterable[str]:
    remote = DOORS if hasattr(config, "policy") else ()
    return (*remote, *(VIDEOS if config.protocol.videos > 0 else ()))


NEEDS: Mapping[str, Modules] = {
    "quickstart": _quickstart,
    "demos": lambda c: (*_simulator(c.env.suite), *DATASETS),
    "convert": lambda _: (*DATASETS, "h5py"),
    "sft": lambda c: (*_datasets(c), *(("scipy",) if c.actions == "fast" else ())),
    "prefer": _datasets,
    "train": _train,
    "plan": lambda _: (),
    "eval": _evaluate,
    "reproduce": lambda c: (*_simulator(c.suite), *(DATASETS if c.demos else ())),
    "reward collect": _datasets,
    "reward label": lambda c: (*DATASETS, *(("matplotlib",) if c.plot else ())),
    "reward train": lambda c: (*DATASETS, *(() if c.is_tiny else ("transformers", "peft", "PIL"))),
    "reward eval": lambda _: (*DATASETS, "matplotlib"),
    "reward score": lambda _: (*DATASETS, "matplotlib"),
    "test-time": _plots,
    "learning-curve": _plots,
    "ablate": _plots,
    "compare": _plots,
    "compare data": lambda c: (*_quickstart(c), "matplotlib"),
    "export": lambda _: (),
    "push": lambda _: ("huggingface_hub",),
    "rerun": lambda _: (*DATASETS, "rerun"),
    "report": lambda _: (),
    "analyse": lambda c: ("matplotlib", "scipy", "PIL", *(VIDEOS if c.videos else ())),
    "film": lambda _: (*VIDEOS, "PIL"),
    "certify": lambda _: (),
    "agree": _datasets,
    "serve": lambda _: DOORS,
    "engine serve": lambda _: (),
    "check-env": lambda c: _simulator(c.suite),
    "doctor": lambda _: (),
}
"""Command -> modules, from its configuration."""


def require_extras(command: str, config: Any) -> None:
    """Raise UserError, naming the extras to install, unless `command` has all that it needs."""
    need(*NEEDS[command](config), purpose=command)
