"""Look at this machine and say what would keep VLA-RL from running on it, and how to mend it.

Every check is a function without arguments that returns one `Check` and never raises: the point of
the doctor is to work where other things do not. Torch, mujoco and the simulators may be missing or
broken; what could crash the process (a GL driver, a simulator's extension modules) runs in another.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vla_rl.envs.benchmark import Installation

from vla_rl.runtime.children import run_program
from vla_rl.runtime.cpus import available_cpus

Status = Literal["ok", "warn", "fail"]

PROBE_TIMEOUT = 120.0  # seconds; a first EGL start on a slow disk took under ten
GIB = 1024**3
_SHOWN = 300
"""The first so many characters of an error in another interpreter are told."""

RENDER_PACKAGES = {
    "egl": ("libegl1", "libgl1", "libgl1-mesa-dri", "libopengl0"),
    "osmesa": ("libosmesa6", "libgl1", "libopengl0"),
}

# A red ball before a blue wall under its own light: the image's centre must be red, its corner
# blue. A broken driver gives a black or uniform image without raising anything.
_RENDER_PROBE = """
import json, time
start = time.perf_counter()
import mujoco
model = mujoco.MjModel.from_xml_string('''
<mujoco>
  <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="eye" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
    <geom type="box" size="4 0.1 4" pos="0 2 0" rgba="0 0 1 1"/>
    <geom type="sphere" size="0.4" rgba="1 0 0 1"/>
  </worldbody>
</mujoco>''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data, camera="eye")
    image = renderer.render()
    try:
        from OpenGL import GL
        driver = GL.glGetString(GL.GL_RENDERER).decode()
    except Exception as error:
        driver = f"driver name unknown: {type(error).__name__}"
print(json.dumps({"centre": image[16, 16].tolist(), "corner": image[2, 2].tolist(),
                  "driver": driver, "seconds": round(time.perf_counter() - start, 2)}))
"""


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, what was found, and what to type if it is not well."""

    name: str
    status: Status
    found: str
    mend: str = ""


# --------------------------------------------------------------------------------------------------
# Python and torch


def check_python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):  # noqa: UP036 - a copied source tree can meet any interpreter
        return Check("python", "fail", found, "install Python 3.11 and run `make setup` again")
    return Check("python", "ok", f"{found} ({sys.prefix})")


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine by the driver's own tool; does not need torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def check_torch(gpus: Sequence[str]) -> Check:
    """Whether torch works, and whether its build (CPU or CUDA) is the one for this machine."""
    try:
        torch = importlib.import_module("torch")
        total = float(torch.ones(2, 2).sum())
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", "fail", f"does not load: {_one_line(error)}", "run `make setup`")
    cuda = torch.version.cuda
    found = f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU'} build, {torch.get_num_threads()} threads"
    again = "remove .venv and run `make setup` to get the build for this machine"
    if total != 4.0:
        return Check("torch", "fail", f"{found}; adds 1+1+1+1 to {total}", again)
    if gpus and not cuda:
        return Check("torch", "warn", f"{found}, but there is a GPU", again)
    if cuda and not gpus and platform.system() == "Linux":
        return Check("torch", "warn", f"{found}, but no NVIDIA GPU was found", again)
    return Check("torch", "ok", found)


def check_gpu(gpus: Sequence[str]) -> Check:
    """Which GPU torch can use. None is fine: the default recipe is made for CPU cores."""
    if not gpus:
        return Check("gpu", "ok", "none; the small policy trains on CPU cores")
    found = "; ".join(gpus)
    try:
        torch = importlib.import_module("torch")
        usable = int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    except (ImportError, OSError, RuntimeError) as error:
        return Check("gpu", "warn", f"{found}; torch: {_one_line(error)}", "run `make setup`")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if usable == 0 and hidden is not None:
        mend = f"unset CUDA_VISIBLE_DEVICES, or name GPUs of 0 to {len(gpus) - 1}"
        return Check("gpu", "warn", f"{found}; hidden by CUDA_VISIBLE_DEVICES={hidden!r}", mend)
    if usable == 0:
        mend = (
            "install the CUDA build (`make setup`), or a newer NVIDIA driver for the build there is"
        )
        return Check("gpu", "warn", f"{found}; torch cannot use it", mend)
    return Check("gpu", "ok", f"{found}; torch sees {usable}")


# --------------------------------------------------------------------------------------------------
# Rendering and simulators


def render_probe(backend: str) -> tuple[bool, str]:
    """Render a small scene off screen with `backend`, a value of MUJOCO_GL, in another process.

    Returns (whether the pixels are right, driver and time, or why not).
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = backend
    done, output = _run_python(_RENDER_PROBE, environment)
    if not done:
        return False, output
    try:
        result = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return False, f"the probe answered {output[-80:]!r}"
    centre, corner = result["centre"], result["corner"]
    red = centre[0] > 150 and max(centre[1:]) < 80
    blue = corner[2] > 150 and max(corner[:2]) < 80
    if not (red and blue):
        return False, f"wrong image: centre {centre} should be red, corner {corner} blue"
    return True, f"{result['driver']}, {result['seconds']} s"


def find_renderer() -> str:
    """The first backend that really draws, or "" if none does."""
    for backend in _backends():
        if render_probe(backend)[0]:
            return backend
    return ""


def check_rendering() -> Check:
    """EGL, else OSMesa; a machine needs one of them, and MUJOCO_GL overrules both."""
    if importlib.util.find_spec("mujoco") is None:
        return Check("rendering", "fail", "mujoco is not installed", _extra("metaworld"))
    reasons: list[str] = []
    for backend in _backends():
        works, found = render_probe(backend)
        if works:
            return Check("rendering", "ok", f"{backend}: {found}")
        reasons.append(f"{backend}: {found}")
    from vla_rl.envs.rendering.egl import wrong_device_id

    mend = wrong_device_id() or install_rendering_command()
    if os.environ.get("MUJOCO_GL"):
        mend = f"unset MUJOCO_GL to let the simulators choose, or: {mend}"
    return Check("rendering", "fail", "; ".join(reasons), mend)


def _backends() -> tuple[str, ...]:
    """What the simulators would try: the user's own choice, else EGL before OSMesa on Linux."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return (chosen,)
    return tuple(RENDER_PACKAGES) if platform.system() == "Linux" else ("cgl",)


def install_rendering_command() -> str:
    """What to type to get Mesa's software rendering."""
    if shutil.which("apt-get"):
        packages = " ".join(RENDER_PACKAGES["egl"])
        return f"sudo apt-get install -y --no-install-recommends {packages}"
    if shutil.which("dnf"):
        return "sudo dnf install mesa-libEGL mesa-libGL mesa-dri-drivers libglvnd-opengl"
    return "install Mesa's EGL (libEGL, libGL, libOpenGL and its DRI drivers) with your system's package tool"


def simulator_checks() -> list[tuple[str, Callable[[], Check]]]:
    """A check for each simulator that has to be installed."""
    try:
        from vla_rl.envs.registry import BENCHMARKS, add_installed  # here: it imports numpy
    except ImportError as error:
        broken = Check("simulators", "fail", _one_line(error), "make setup")
        return [("simulators", lambda: broken)]
    broken = [
        Check(f"benchmark {name}", "warn", line, "mend or remove that package")
        for name, line in add_installed().items()
    ]
    needed = [(n, played.installation) for n, played in BENCHMARKS.items() if played.installation]
    known = [(name, partial(check_simulator, name, found)) for name, found in needed]
    return [*known, *((check.name, partial(_as_found, check)) for check in broken)]


def _as_found(check: Check) -> Check:
    return check


def check_simulator(name: str, wanted: Installation) -> Check:
    """Whether a simulator can be used; in another process, since it loads a physics engine."""
    if importlib.util.find_spec(wanted.module) is None:
        if wanted.optional:
            found = "not installed (optional: its suites need it)"
            return Check(name, "ok", found, _extra(wanted.extra))
        return Check(name, "fail", "not installed", _extra(wanted.extra))
    versions = _versions(wanted.packages)
    named = ", ".join(f"{package} {version}" for package, version in versions.items())
    done, output = _run_python(wanted.probe, dict(os.environ))
    if not done:
        return Check(name, "fail", f"{named}: {output}", wanted.mend or _extra(wanted.extra))
    return Check(name, "ok", f"{named}, {output.splitlines()[-1]}")


def check_extras() -> Check:
    """The packages behind the extras: data sets, report, TensorBoard, LoRA."""
    modules = {
        "pyarrow": "data", "av": "data", "matplotlib": "report", "PIL": "report",
        "tensorboard": "tensorboard", "peft": "lora", "transformers": "lora",
    }  # fmt: skip
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    present = _versions([_distribution(name) for name in modules if name not in missing])
    found = ", ".join(f"{name} {version}" for name, version in present.items()) or "none installed"
    needed = sorted({modules[name] for name in missing if modules[name] != "lora"})
    if needed:
        return Check("extras", "warn", f"{found}; missing {', '.join(missing)}", _extra(*needed))
    optional = f"; optional and missing: {', '.join(missing)}" if missing else ""
    return Check("extras", "ok", found + optional)


# --------------------------------------------------------------------------------------------------
# The machine


def check_disk(folder: Path = Path("runs")) -> Check:
    """Free space where runs are written, and whether one may write there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    found = f"{free:.1f} GiB free for {folder}/"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        mend = "choose another folder with --run.root, or make this one writable"
        return Check("disk", "fail", f"cannot write in {place}: {error.strerror}", mend)
    mend = "free some space, or choose another disk with --run.root"
    if free < 0.5:
        return Check("disk", "fail", found, mend)
    return Check("disk", "warn" if free < 3 else "ok", found, mend if free < 3 else "")


def check_memory() -> Check:
    """Memory that is free now, the container's limit counted in. The quickstart takes under 4 GiB."""
    psutil = importlib.import_module("psutil")
    free = psutil.virtual_memory().available
    limit = _cgroup_number("memory.max")
    if limit is not None:
        free = min(free, max(limit - (_cgroup_number("memory.current") or 0), 0))
    found = f"{free / GIB:.1f} GiB available"
    mend = "close other programs, or train with fewer environments: --env.num-envs 16"
    if free < 1.5 * GIB:
        return Check("memory", "fail", found, mend)
    return Check(
        "memory", "warn" if free < 4 * GIB else "ok", found, mend if free < 4 * GIB else ""
    )


def check_cores() -> Check:
    cores = available_cpus()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{cores} usable, load {load:.1f}"
    if cores < 2:
        return Check("cores", "warn", found, "two cores or more are advised; training will be slow")
    if load > 1.5 * cores:
        return Check("cores", "warn", found, "other programs are busy: timings will be worse")
    return Check("cores", "ok", found)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Simulator processes hand over their images through shared memory."""
    if not folder.is_dir():
        if platform.system() == "Linux":
            return Check(
                "shared memory", "fail", f"{folder} is missing", f"mount tmpfs at {folder}"
            )
        return Check("shared memory", "ok", f"{platform.system()}'s own")
    free = shutil.disk_usage(folder).free / 1024**2
    found = f"{free:.0f} MiB free in {folder}"
    mend = "give the container more, e.g. docker run --shm-size=1g"
    if not os.access(folder, os.W_OK) or free < 8:
        return Check("shared memory", "fail", found, mend)
    return Check("shared memory", "warn" if free < 48 else "ok", found, mend if free < 48 else "")


# --------------------------------------------------------------------------------------------------
# All together


def doctor(runs: Path = Path("runs")) -> list[Check]:
    """Look at everything `vla-rl` needs, in the order in which one would mend it."""
    gpus = nvidia_gpus()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("torch", lambda: check_torch(gpus)),
        ("gpu", lambda: check_gpu(gpus)),
        ("rendering", check_rendering),
        *simulator_checks(),
        ("extras", check_extras),
        ("disk", lambda: check_disk(runs)),
        ("memory", check_memory),
        ("cores", check_cores),
        ("shared memory", check_shared_memory),
    ]
    return [_guarded(name, look) for name, look in checks]


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(check.status != "fail" for check in checks)


def format_checks(checks: Sequence[Check]) -> str:
    """The findings as plain text: one line each, what to do below it, and a closing line."""
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.mend}")
    failed = [check.name for check in checks if check.status == "fail"]
    warned = [check.name for check in checks if check.status == "warn"]
    if failed:
        lines.append(f"\nNot ready: mend {', '.join(failed)}.")
    elif warned:
        lines.append(f"\nReady, with a remark on {', '.join(warned)}.")
    else:
        lines.append("\nReady.")
    return "\n".join(lines)


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """Run one check; a defect in it is a finding of its own and does not stop the others."""
    try:
        return look()
    except Exception as error:
        return Check(
            name, "fail", f"the check itself broke: {_one_line(error)}", "please report this"
        )


def _run_python(code: str, environment: dict[str, str]) -> tuple[bool, str]:
    """Run `code` in another interpreter: (True, stdout) or (False, one line saying why not)."""
    try:
        answer = run_program(code, timeout=PROBE_TIMEOUT, environment=environment)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PROBE_TIMEOUT:.0f} s"
    if answer.returncode < 0:
        return False, f"killed by signal {-answer.returncode}"
    if answer.returncode != 0:
        lines = [line for line in answer.stderr.splitlines() if _names_error(line)]
        return False, lines[0][:_SHOWN] if lines else f"exit code {answer.returncode}"
    return True, answer.stdout.strip()


def _names_error(line: str) -> bool:
    """Whether a line of a traceback is "SomeError: reason"; destructors add lines of their own after it."""
    head = line.split(":", 1)[0]
    return bool(head) and not line.startswith(" ") and head.split(".")[-1].endswith("Error")


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160]


def _extra(*names: str) -> str:
    return f"pip install 'vla-rl[{','.join(names)}]'"


def _distribution(module: str) -> str:
    return {"PIL": "pillow"}.get(module, module)


def _versions(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of those of the named distributions that are installed."""
    found: dict[str, str] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cgroup_words(name: str, root: Path = Path("/sys/fs/cgroup")) -> list[str]:
    """Words of a control-group (v2) file of this process's container; empty where there is none."""
    try:
        return (root / name).read_text().split()
    except OSError:
        return []


def _cgroup_number(name: str) -> int | None:
    words = _cgroup_words(name)
    return int(words[0]) if words and words[0].isdigit() else None
