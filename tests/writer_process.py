"""A process that writes files when it is told to, so that a test can kill it, starve it or race it.

Jobs are lists: ["write", path, byte, size, overwrite] is `write_atomically` of `size` times that byte,
["main", ARGUMENT, ...] the command line, ["unlink", path] what it says. The process computes on one
thread, so that it can be forked and gives the same bytes every time. It loads a model once.

Layout: `Writer`, the test's end; then the process itself, for which this file is run as a script.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

Job = list[Any]


class Writer:
    """A running process; `prefix` is put before its command. Jobs are done in order."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self.receive() == "ready"

    def send(self, request: object) -> None:
        """Ask for a job; `receive` gives its result."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> Any:
        """The next reply; of a job, its exit code and what it said on standard error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return json.loads(line)

    def run(self, *job: Any) -> tuple[int, str]:
        """Exit code of a job, and what it said on standard error."""
        self.send({"job": job})
        code, said = self.receive()
        return code, said

    def kill_while_running(self, jobs: Sequence[Job], rounds: float) -> None:
        """Let a child do `jobs` over and over, and end it by SIGKILL about `rounds` after the first."""
        self.send({"repeat": jobs})
        running = self.receive()
        assert "pid" in running, running
        time.sleep(rounds * running["seconds"])
        os.kill(running["pid"], signal.SIGKILL)
        assert self.receive() == {"ended": -signal.SIGKILL}

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@functools.cache
def _cache_models() -> None:
    import torch

    from vqcodec import codec

    torch.set_num_threads(1)
    codec.load_codec = functools.cache(codec.load_codec)


def _do(job: Job) -> tuple[int, str]:
    kind, *arguments = job
    if kind == "unlink":
        os.unlink(*arguments)
    elif kind == "main":
        from vqcodec.cli import main

        _cache_models()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(arguments)
        return code, said.getvalue()
    else:
        from vqcodec.errors import VqcError
        from vqcodec.files import write_atomically

        path, byte, size, overwrite = arguments
        try:
            write_atomically(path, bytes([byte]) * size, overwrite=overwrite)
        except VqcError as error:
            return error.exit_code, str(error)
    return 0, ""


def _repeat(jobs: Sequence[Job], parent: int) -> None:
    """Do `jobs` until killed, or until nobody is left who could do that."""
    started = time.perf_counter()
    for count in itertools.count():
        for job in jobs:
            code, said = _do(job)
            assert code == 0, said
        if count == 0:
            seconds = time.perf_counter() - started
            print(json.dumps({"pid": os.getpid(), "seconds": seconds}), flush=True)
        if os.getppid() != parent:
            break


def _serve() -> None:
    own = os.getpid()
    print('"ready"', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "job" in request:
            print(json.dumps(_do(request["job"])), flush=True)
        elif child := os.fork():
            _, status = os.waitpid(child, 0)
            print(json.dumps({"ended": os.waitstatus_to_exitcode(status)}), flush=True)
        else:
            _repeat(request["repeat"], own)
            return


if __name__ == "__main__":
    _serve()
