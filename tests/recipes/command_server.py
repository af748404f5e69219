"""Commands of the product in processes of their own, quickly: each is forked from one that has imported everything.

    with CommandServer(folder) as server:
        command = server.start("sft", "--dataset", ...)
        command.kill(signal.SIGTERM)
        command.wait().code, command.output()

A command leads a session of its own, as in a terminal. All its descendants carry its mark in their environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

MARK = "VLA_RL_TEST_COMMAND"
SUITE, SIZE = "toy:reach-red,grasp-block", 16
PRESET = "tiny-toy"
"""A training preset that takes seconds; known to these processes alone."""


@dataclass
class Command:
    """One running command."""

    server: CommandServer
    pid: int
    mark: str
    out: Path
    code: int | None = None
    seconds: float = field(default_factory=time.monotonic)

    def wait(self) -> Command:
        """Until it has ended; `code` is then its exit code, negative after a signal that it did not handle."""
        if self.code is None:
            self.code = self.server.receive()["code"]
            self.seconds = time.monotonic() - self.seconds
        return self

    def kill(self, number: int, *, everybody: bool = False) -> None:
        """Send a signal to the command, or to all processes of it at once, as batch systems do."""
        pids = [process.pid for process in marked(self.mark)] if everybody else [self.pid]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def output(self) -> str:
        return self.out.read_text(errors="replace")

    def survivors(self) -> list[str]:
        """Processes of the command that live on although it has ended; a moment is allowed to end."""
        _, alive = psutil.wait_procs(marked(self.mark), timeout=60)
        left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        found = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        return found


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


class CommandServer:
    """The process that commands are forked from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.receive() == {"ready": True}

    def start(self, *argv: str) -> Command:
        """Begin a command; one at a time."""
        mark = uuid.uuid4().hex
        out = self._folder / f"{mark}.txt"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "mark": mark, "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return Command(self, self.receive()["pid"], mark, out)

    def run(self, *argv: str) -> Command:
        """A command from beginning to end, which must be good."""
        command = self.start(*argv).wait()
        assert command.code == 0, command.output()
        return command

    def receive(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        return json.loads(line)

    def __enter__(self) -> CommandServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def _register_preset() -> None:
    from dataclasses import replace

    from vla_rl.recipes.presets import PRESETS, preset

    base = preset("metaworld-mt5")
    PRESETS[PRESET] = replace(
        base,
        env=replace(base.env, suite=SUITE, image_size=SIZE, num_envs=4, num_workers=2, horizon=4),
        schedule=replace(base.schedule, iterations=4),
        rollout=replace(base.rollout, turns=4),
        ppo=replace(base.ppo, critic_warmup=1, minibatch=8, critic_warmup_until_explained=False),
        eval=replace(base.eval, episodes_per_task=2, videos=0),
        run=replace(base.run, save_every=2, eval_every=3, trackers="none", keep=5),
    )


def serve() -> None:
    """Import what commands need, then fork one for each line that comes in."""
    # the slow part of every command
    import torch
    import torch._dynamo

    from vla_rl.cli import main

    torch.set_num_threads(1)
    _register_preset()
    answers = os.fdopen(os.dup(1), "w")

    def answer(message: dict) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ[MARK] = request["mark"]
            output = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 1
            try:
                code = main(request["argv"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        answer({"pid": pid})
        _, status = os.waitpid(pid, 0)
        answer({"code": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    serve()
