"""Which parts of a Gymnasium environment's observation and action are what: chosen from its spaces, or as options say.

Nothing is guessed in silence: what is not of a usual name or kind is refused, with the option that settles it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.gymnasium.options import RENDER, WHOLE, GymOptions, Path

IMAGES = ("image", "images", "pixels", "rgb", "agentview_image", "observation.image", "main")
"""Usual names of the image, taken before others."""
PROPRIO = ("agent_pos", "proprio", "proprioception", "robot_state", "observation.state")
"""Usual names of proprioception; whatever else is a vector may hold what no camera sees."""
_LEAST = 8  # pixels; smaller boxes of three axes are no images
_CHANNELS = (1, 3)
_MOST = 10_000  # numbers of an action or of proprioception


class Actions(NamedTuple):
    """The environment's actions, flattened."""

    shape: tuple[int, ...]
    dtype: str
    low: tuple[float, ...]
    high: tuple[float, ...]


def name_of(path: Path) -> str:
    return "/".join(map(str, path)) or WHOLE


def value_at(observation: Any, path: Path) -> Any:
    """What lies at a path of a nested observation. KeyError, IndexError or TypeError where nothing does."""
    for key in path:
        observation = observation[key]
    return observation


def leaves(space: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The parts of an observation space that are no Dict and no Tuple."""
    spaces = getattr(space, "spaces", None)
    if isinstance(spaces, dict):
        parts: Sequence[tuple[str | int, Any]] = list(spaces.items())
    elif isinstance(spaces, tuple | list) and type(space).__name__ == "Tuple":
        parts = list(enumerate(spaces))
    else:
        yield path, space
        return
    for key, inner in parts:
        yield from leaves(inner, (*path, key))


def chosen_image(options: GymOptions, space: Any) -> Path | None:
    """Where the image is; None: `render()` gives it. ConfigError where options or the space do not say."""
    found = list(leaves(space))
    if options.image == RENDER:
        return None
    if options.image:
        return _image_at(options, found, "image", options.image)
    images = [path for path, part in found if _is_image(part)]
    if len(images) > 1:
        usual = [path for path in images if path and path[-1] in IMAGES]
        if len(usual) != 1:
            listed = ", ".join(f"image={name_of(path)}" for path in images)
            raise ConfigError(
                f"{options.suite}: its observation has {len(images)} images: choose with {listed}"
            )
        return usual[0]
    if images:
        return images[0]
    for path, part in found:
        if _looks_like_image(part):
            raise ConfigError(
                f"{options.suite}: {_not_an_image(path, part)}, or take image={RENDER}"
            )
    return None


def chosen_wrist(options: GymOptions, space: Any) -> Path | None:
    """Where the second image is, if one was asked for."""
    if not options.wrist:
        return None
    return _image_at(options, list(leaves(space)), "wrist", options.wrist)


def chosen_proprio(options: GymOptions, space: Any) -> list[tuple[Path, int]]:
    """Where proprioception is, each with how many numbers. ConfigError for a key that is not there or holds none."""
    found = list(leaves(space))
    if not options.proprio:
        usual = [(p, part) for p, part in found if p and p[-1] in PROPRIO and _is_vector(part)]
        return [(path, int(np.prod(part.shape))) for path, part in usual]
    if options.proprio == ("none",):
        return []
    chosen = []
    for key in options.proprio:
        path, part = _named(options, found, "proprio", key)
        if not _is_vector(part):
            raise ConfigError(
                f"{options.suite}: proprio={key} is {part}: expected a Box of numbers, at most {_MOST} of them"
            )
        chosen.append((path, int(np.prod(part.shape))))
    return chosen


def chosen_actions(options: GymOptions, space: Any) -> Actions:
    """The actions, which must be a bounded Box of numbers. ConfigError with what to do for any other."""
    suite = options.suite
    if type(space).__name__ != "Box":
        raise ConfigError(
            f"{suite}: its actions are {_short(space)}: expected a Box of numbers. A policy decides one number a "
            f"component; wrap the environment so that it takes them (gymnasium.wrappers.TransformAction)"
        )
    size = int(np.prod(space.shape))
    if not np.issubdtype(space.dtype, np.floating) or not 0 < size <= _MOST:
        raise ConfigError(
            f"{suite}: its actions are {_short(space)}: expected 1 to {_MOST} numbers of a float dtype; wrap the "
            "environment (gymnasium.wrappers.TransformAction)"
        )
    low, high = (
        np.asarray(bound, np.float64).reshape(-1).copy() for bound in (space.low, space.high)
    )
    open_ends = ~(np.isfinite(low) & np.isfinite(high)) | (np.abs(low) > 1e9) | (np.abs(high) > 1e9)
    if options.bounds is not None:
        low[open_ends], high[open_ends] = options.bounds
    elif open_ends.any():
        raise ConfigError(
            f"{suite}: its actions are unbounded in component {', '.join(map(str, np.flatnonzero(open_ends)[:8]))}: "
            "say what [-1, 1] of the policy stands for, as bounds=-1..1"
        )
    if not (low < high).all():
        raise ConfigError(
            f"{suite}: component {int(np.argmin(low < high))} of its actions has low >= high ({_short(space)}): "
            "expected low below high"
        )
    return Actions(
        tuple(space.shape), np.dtype(space.dtype).name, tuple(low.tolist()), tuple(high.tolist())
    )


def as_picture(suite: str, value: Any, what: str) -> np.ndarray:
    """An image of the environment as uint8 (H, W, 3). UserError for what is none: it is never rescaled in silence."""
    picture: np.ndarray[Any, np.dtype[Any]] = (
        np.asarray(value) if value is not None else np.zeros(0)
    )
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim == 3 and picture.shape[2] not in _CHANNELS and picture.shape[0] in _CHANNELS:
        picture = picture.transpose(1, 2, 0)
    fits = picture.ndim == 3 and picture.shape[2] in _CHANNELS and min(picture.shape[:2]) > 0
    if not fits or picture.dtype != np.uint8:
        found = "nothing" if value is None else f"{picture.dtype} of shape {np.shape(value)}"
        raise UserError(
            f"{suite}: {what} gave {found}: expected uint8 of shape (H, W, 3), values 0 to 255{_remedy(picture.dtype)}"
        )
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind != "f":
        return ""
    return "; if they are 0 to 1, give (255 * image).round().astype(numpy.uint8), in a wrapper for example"


def _image_at(options: GymOptions, found: list[tuple[Path, Any]], option: str, key: str) -> Path:
    path, part = _named(options, found, option, key)
    if not _is_image(part):
        raise ConfigError(f"{options.suite}: {option}={key}: {_not_an_image(path, part)}")
    return path


def _named(
    options: GymOptions, found: list[tuple[Path, Any]], option: str, key: str
) -> tuple[Path, Any]:
    by_name = {name_of(path): (path, part) for path, part in found}
    if key not in by_name:
        more = [RENDER] if option == "image" else []
        raise ConfigError(
            f"{options.suite}: its observation has no {option}={key}.{nearest(key, [*by_name, *more])}"
        )
    return by_name[key]


def _not_an_image(path: Path, part: Any) -> str:
    dtype = np.dtype(part.dtype) if getattr(part, "dtype", None) is not None else np.dtype(object)
    return (
        f"{name_of(path)!r} of its observation is {_short(part)}: expected images of uint8, (H, W, 3), 0 to 255"
        f"{_remedy(dtype)}"
    )


def _is_image(part: Any) -> bool:
    return _looks_like_image(part) and part.dtype == np.uint8


def _looks_like_image(part: Any) -> bool:
    shape = getattr(part, "shape", None) if type(part).__name__ == "Box" else None
    if shape is None or len(shape) != 3:
        return False
    last, first = shape[2] in _CHANNELS, shape[0] in _CHANNELS
    sides = shape[:2] if last else shape[1:]
    return (last or first) and min(sides) >= _LEAST


def _is_vector(part: Any) -> bool:
    if type(part).__name__ != "Box" or np.dtype(part.dtype).kind not in "fiub":
        return False
    return 0 < int(np.prod(part.shape)) <= _MOST and not _looks_like_image(part)


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
