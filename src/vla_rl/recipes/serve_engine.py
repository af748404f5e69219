"""An engine by itself: `vla-rl engine serve`.

A training run starts one for itself. By hand, on a GPU of its own, or in another container of the same machine:

    CUDA_VISIBLE_DEVICES=1 .venv-vllm/bin/vla-rl engine serve runs/export --socket runs/engine.socket
    vla-rl train ... --parallel.engine vllm --parallel.engine-address unix:runs/engine.socket
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vla_rl.config import ConfigError
from vla_rl.runtime.hub import checkpoint_folder
from vla_rl.runtime.locate import locate_policy
from vla_rl.serving.addresses import Address
from vla_rl.serving.backend import Backend
from vla_rl.serving.server import EngineServer


def serve_engine(
    checkpoint: Path,
    backend: str,
    socket: Path | None,
    port: int,
    dtype: str,
    memory: float,
) -> str:
    """Serve until a signal ends it; returns what it has done.

    Raises ConfigError where the address is missing or has no password, UserError for a checkpoint that cannot be
    served and an address in use.
    """
    if (socket is None) == (port == 0):
        raise ConfigError("give where to listen: either --socket PATH or --port NUMBER")
    address = Address(port=port) if socket is None else Address.of_path(socket)
    address.token  # noqa: B018  raises where it is missing
    folder = Path(checkpoint_folder(locate_policy(checkpoint)[0]))
    listener = address.listen()  # who asks now waits until the weights are there
    try:
        with tempfile.TemporaryDirectory(prefix="vla-rl-engine-") as scratch:
            server = EngineServer(
                _backend(backend, folder, Path(scratch), dtype, memory), address, listener
            )
            facts = server.backend.facts
            print(
                f"{facts.library} serves {folder} on {address} ({facts.device}, {facts.dtype})",
                flush=True,
            )
            server.serve()
    finally:
        listener.close()
        address.remove()
    return f"ended at {address}"


def _backend(name: str, folder: Path, scratch: Path, dtype: str, memory: float) -> Backend:
    if name == "own":
        from vla_rl.serving.own import OwnBackend

        return OwnBackend.of(folder, dtype)
    from vla_rl.serving.vllm import VllmBackend

    return VllmBackend(folder, scratch, dtype, memory)
