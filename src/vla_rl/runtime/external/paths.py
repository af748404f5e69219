"""Paths that a file names: none leaves its folder, and no link is followed out of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from vla_rl.config.errors import UserError
from vla_rl.runtime.external.faults import fault

MAX_LENGTH, MAX_PART = 1024, 255
REMEDY = "Name a file inside the folder, or copy the file into it."


def path_inside(
    folder: Path, name: object, *, source: str | Path, key: str = "", remedy: str = REMEDY
) -> Path:
    """`folder / name` for the relative `name` that `source` gives under `key`.

    Raises UserError for what is no text, an absolute path, one with `..`, or one that leads out of the folder by a
    symbolic link. The file need not exist. The folder itself may be a link. Links of a Hugging Face cache, from a
    snapshot to the blobs of the same repository, count as inside.
    """
    if not isinstance(name, str) or not _plain(name):
        raise fault(source, key, "a path inside its folder", name, remedy)
    path = folder / name
    try:
        target = path.resolve()
        roots = [folder.resolve(), *_hub_blobs(folder)]
    except (OSError, RuntimeError, ValueError) as error:  # too long; a circle of links
        raise UserError(f"{source}: cannot follow the path {name!r} ({error}). {remedy}") from error
    if not any(target.is_relative_to(root) for root in roots):
        where = f"{key}: " if key else ""
        raise UserError(
            f"{source}: {where}expected a file inside {folder}, got a link that leads out of it: {name}. {remedy}"
        )
    return path


def files_inside(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` that match the glob `pattern`, in order. UserError for one that is a link out."""
    return [
        path_inside(folder, path.relative_to(folder).as_posix(), source=folder)
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    ]


def _plain(name: str) -> bool:
    if not name or len(name) > MAX_LENGTH or not name.isprintable():
        return False
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    return not (
        any(len(part.encode()) > MAX_PART for part in windows.parts)
        or PurePosixPath(name).is_absolute()
        or windows.is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
    )


def _hub_blobs(folder: Path) -> Iterator[Path]:
    """In `models--owner--name/snapshots/<revision>` the files are links to `models--owner--name/blobs`."""
    resolved = folder.resolve()
    for place in (resolved, *resolved.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith(
            ("models--", "datasets--")
        ):
            yield repository / "blobs"
            return
