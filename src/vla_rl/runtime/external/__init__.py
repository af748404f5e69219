"""What comes from outside, checked once at the door: JSON into typed schemas, paths that stay in their folder, arrays.

Nothing in a file that somebody else made is trusted. Read it through here; behind the door every value has the type
and the range that its schema says, and every fault is one UserError that names the file, the key, what was expected,
what came, and what to do.

    Positive = Annotated[int, Ge(1), Le(65536)]  # annotated_types

    @dataclass(frozen=True)
    class VisionConfig:                       # a plain dataclass; unknown keys are ignored
        image_sizes: Annotated[tuple[Positive, ...], MinLen(1)]
        hidden_size: Positive = 768           # a key that may be missing has a default; null needs `| None`
        pad_token_id: int | None = None

    config = read_json(folder / "config.json", VisionConfig, inside=folder)
    shard = path_inside(folder, name, source=index_file, key="weight_map")
    actions = check_array(actions, source=folder, key="action", axes=("frame", "dimension"))

    UserError: ckpt/config.json: image_sizes[1]: expected a whole number, got null. Fix the file or fetch it again.

Numbers that are not finite are refused everywhere in a file unless `finite=False` is given. A condition that a schema
cannot say is checked by the reader, which raises `fault(source, key, expected, found)`. pydantic does the checking;
it is imported when the first schema is used, so that modules with schemas stay light (docs/decisions/013).
"""

from vla_rl.runtime.external.arrays import check_array
from vla_rl.runtime.external.faults import Phrase, dotted, fault, printable, shown
from vla_rl.runtime.external.json_files import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    parse_json,
    read_bytes,
    read_json,
)
from vla_rl.runtime.external.paths import files_inside, path_inside

__all__ = [
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "Phrase",
    "check_array",
    "dotted",
    "fault",
    "files_inside",
    "parse_json",
    "path_inside",
    "printable",
    "read_bytes",
    "read_json",
    "shown",
]
