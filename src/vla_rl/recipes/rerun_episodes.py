"""Write episodes of a dataset for rerun's viewer.

vla-rl rerun runs/demos --out recordings        then: rerun recordings/*.rrd

Each episode is a file: recordings that are put one behind the other are refused by rerun's reader (0.41). Time is the
frame, and the robot's seconds. Source: https://rerun.io/docs, rerun-sdk 0.41.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import UserError
from vla_rl.config.push import RerunConfig
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import require_writable, whole_folder
from vla_rl.runtime.provenance import package_versions
from vla_rl.training.epoch_state import require_unused

APPLICATION = "vla-rl"
_NOT_SHOWN = ("index", "episode_index", "frame_index", "timestamp", "task_index")
_JPEG_QUALITY = 90


def write_rerun(config: RerunConfig) -> Path:
    """Write the folder `config.out` and return it. UserError for what the reader refuses, or without those episodes."""
    need("rerun", "pyarrow", "av", purpose="rerun")
    rerun: Any = import_module("rerun")

    out = require_writable(Path(config.out), "folder")
    require_unused(out)
    reader = LeRobotReader(config.dataset)
    numbers = [number for number in dict.fromkeys(config.episodes) if number < len(reader.episodes)]
    if not numbers:
        raise UserError(
            f"{config.dataset} has the episodes 0 to {len(reader.episodes) - 1}, none of those asked for"
        )
    with whole_folder(out) as aside:
        for number in numbers:
            recording = _episode(rerun, reader, number)
            (aside / f"episode-{number:06d}.rrd").write_bytes(recording)
    return out


def _episode(rerun: Any, reader: LeRobotReader, number: int) -> bytes:
    """One episode as a recording."""
    found = reader.episode(number)
    name = f"{reader.folder.name}-episode-{number:06d}"
    stream = rerun.RecordingStream(APPLICATION, recording_id=name)
    memory = stream.memory_recording()
    length = reader.episodes[number].length
    stream.log("instruction", rerun.TextDocument(found["task"]), static=True)
    if "next.success" in found:
        outcome = (
            "success" if bool(np.asarray(found["next.success"]).reshape(-1)[-1]) else "failure"
        )
        stream.log("outcome", rerun.TextDocument(outcome), static=True)
    columns = {
        column: np.asarray(values, dtype=np.float64).reshape(length, -1)
        for column, values in found.items()
        if column not in (*_NOT_SHOWN, *reader.cameras) and np.asarray(values).dtype.kind in "fiub"
    }
    seconds = np.asarray(found.get("timestamp", np.arange(length) / reader.fps)).reshape(-1)
    for frame in range(length):
        stream.set_time("frame", sequence=frame)
        stream.set_time("robot_time", duration=float(seconds[frame]))
        for camera in reader.cameras:
            image = rerun.Image(found[camera][frame]).compress(jpeg_quality=_JPEG_QUALITY)
            stream.log(camera.replace(".", "/"), image)
        for column, values in columns.items():
            stream.log(column.replace(".", "/"), rerun.Scalars(values[frame]))
    versions = package_versions(["vla-rl", "rerun-sdk"])
    stream.log("written_by", rerun.TextDocument(f"VLA-RL {versions['vla-rl']}"), static=True)
    return memory.drain_as_bytes()
