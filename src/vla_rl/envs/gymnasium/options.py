"""How one Gymnasium environment is to be read, and the suite expression that says so.

    gym:PushBlock-v1                                           # registered by an installed package
    gym:slider:Slider-v0,success=reward,instruction=move to the mark
                                                               # `import slider` registers it

An option reaches to the next one, so that an instruction may hold commas. Knows no simulator and imports none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.suites import shown

SUITE = "gym"

Snapshots = Literal["auto", "state", "replay", "none"]
Path = tuple[str | int, ...]
"""Where something is in a nested observation: keys of a Dict, numbers of a Tuple. Empty: the observation itself."""

WHOLE = "observation"
"""What options call an observation that is no Dict and no Tuple."""
RENDER = "render"

OPTIONS = (
    "image", "wrist", "proprio", "instruction", "instruction_from", "success", "dense", "bounds", "expert", "task",
    "snapshots",
)  # fmt: skip
_FAMILIES = ("make", "reset")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_OPTION = re.compile(rf",\s*((?:{'|'.join(_FAMILIES)})\.{_NAME}|{_NAME})=")
_ID = re.compile(r"(?:(?P<module>[\w.]+):)?(?:(?P<space>[\w-]+)/)?(?P<name>[\w.-]+)", re.ASCII)
_TASK = re.compile(r"[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class GymOptions:
    """What to make of a Gymnasium environment. Plain values and names of functions: simulator processes get it."""

    environment: str | Callable[..., Any]
    """Its id, with `module:` before it if one has to be imported, or a function of a module that makes one."""
    suite: str
    """What messages call it."""
    task: str
    """Name of the one task that it is, in results and metrics."""
    image: str = ""
    """Key of the image, `render` for `render()`; empty finds it."""
    wrist: str = ""
    """Key of a second image."""
    proprio: tuple[str, ...] = ()
    """Keys of proprioception, one after another; empty takes one of the usual names, `none` takes nothing."""
    instruction: str = ""
    """What the policy is told; empty reads it from the environment."""
    instruction_from: str = ""
    """Key of an observation or of info, or attribute, that holds it; empty tries the usual names."""
    success: str = ""
    """`terminated`, `reward` (terminated with a positive reward), or a key of info; empty takes `success` or
    `is_success` of info."""
    dense: float | None = None
    """What the environment's reward of a step gives for a solved task, if it is a shaped one."""
    bounds: tuple[float, float] | None = None
    """Of the numbers of an action that the environment leaves unbounded."""
    expert: str | Callable[[Any], Any] = ""
    """Of demonstrations: `module:name`, `random`, or a function of a module. Empty: there is none."""
    snapshots: Snapshots = "auto"
    make: tuple[tuple[str, Any], ...] = ()
    """Keywords to make it with."""
    reset: tuple[tuple[str, Any], ...] = ()
    """`options` of its `reset`."""


def is_gymnasium(suite: str) -> bool:
    """Whether a suite names a Gymnasium environment."""
    return suite.partition(":")[0].strip() == SUITE and ":" in suite


def gym_options(suite: str) -> GymOptions:
    """What `gym:<id>,<option>=<value>,...` asks for. ConfigError, naming the option, for whatever does not fit."""
    text = suite.partition(":")[2].strip()
    found = list(_OPTION.finditer(text))
    identifier = text[: found[0].start()] if found else text
    match = _ID.fullmatch(identifier.strip())
    if match is None:
        raise ConfigError(
            f"{shown(suite)}: expected gym:<id>, gym:<module>:<id>, and options as ,success=is_success after it, got "
            f"the id {identifier.strip()!r}"
        )
    options = GymOptions(identifier.strip(), f"{SUITE}:{identifier.strip()}", match["name"])
    ends = [option.start() for option in found[1:]] + [len(text)] * bool(found)
    seen: set[str] = set()
    for option, end in zip(found, ends, strict=True):
        name, value = option[1], text[option.end() : end].strip()
        if name in seen and name != "proprio":
            raise ConfigError(f"{shown(suite)} says {name}= twice: say it once")
        seen.add(name)
        options = _with_option(options, name, value)
    return options


def _with_option(options: GymOptions, name: str, value: str) -> GymOptions:
    family, _, key = name.partition(".")
    if family in _FAMILIES and key:
        return replace(options, **{family: (*getattr(options, family), (key, _as_value(value)))})
    if name not in OPTIONS:
        known = [*OPTIONS, "make.<keyword>", "reset.<option>"]
        raise ConfigError(f"{options.suite}: there is no option {name!r}.{nearest(name, known)}")
    if not value:
        raise ConfigError(f"{options.suite}: {name}= needs a value")
    reading = _READ.get(name)
    if name == "proprio":
        return replace(options, proprio=(*options.proprio, value))
    return replace(options, **{name: value if reading is None else reading(options.suite, value)})


def _as_value(text: str) -> Any:
    """JSON where it is some (true, 3, 0.5, "a", null), else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float | str | None) else text


def _number(suite: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e9:
        raise ConfigError(
            f"{suite}: dense= is the environment's reward of a solved task: expected a number above 0, got {text!r}"
        )
    return value


def _bounds(suite: str, text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        pair = float(low), float(high)
    except ValueError:
        pair = (0.0, 0.0)
    if not (dots and -1e9 < pair[0] < pair[1] < 1e9):
        raise ConfigError(f"{suite}: bounds= expects two numbers as -1..1, got {text!r}")
    return pair


def _task(suite: str, text: str) -> str:
    if not _TASK.fullmatch(text):
        raise ConfigError(
            f"{suite}: task= expects a name of letters, digits, points and dashes, got {text!r}"
        )
    return text


def _snapshots(suite: str, text: str) -> str:
    kinds = ("auto", "state", "replay", "none")
    if text not in kinds:
        raise ConfigError(f"{suite}: snapshots={text!r}: expected one of {', '.join(kinds)}")
    return text


_READ: dict[str, Callable[[str, str], Any]] = {
    "dense": _number,
    "bounds": _bounds,
    "task": _task,
    "snapshots": _snapshots,
}
