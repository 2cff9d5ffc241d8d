"""Runs the program as a process of its own without the start of Python: half of what a small run takes.

A server has imported every command. For each run it forks a process, which gets the arguments, environment,
directory and standard streams of the run, calls ``cli.main`` as ``__main__`` does, and ends.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from btw_backup import cli

# What Python looks at when it starts.
_OF_PYTHON = ("PYTHON", "LANG", "LC_")
# A message is not sent in pieces (unix(7)).
_LONGEST = 100_000


def can_run(env: Mapping[str, str]) -> bool:
    """Whether a run with these variables, added to the environment, needs no start of Python."""
    return not any(name.startswith(_OF_PYTHON) for name in env) and "coverage" not in sys.modules


class ForkServer:
    """The server, started at the first run."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )

    def stop(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        umask: int = -1,
        timeout: float = 120,
    ) -> tuple[int, str, str]:
        """Run the program. Returns its status and what it printed."""
        request = json.dumps([argv, dict(env), cwd, umask]).encode()
        assert len(request) < _LONGEST
        pipes = [os.pipe() for _ in range(3)]
        ours = [reading for reading, _ in pipes]
        with open(os.devnull, "rb") as nothing:
            fds = [nothing.fileno(), *(writing for _, writing in pipes)]
            socket.send_fds(self._socket, [request], fds)
        for _, writing in pipes:
            os.close(writing)
        out, err, told = _read_all(ours, time.monotonic() + timeout)
        return int(told.split()[1]), _text(out), _text(err)


def _read_all(fds: list[int], deadline: float) -> list[bytes]:
    """Read the pipes to their ends, and close them. The last tells of which process they are."""
    found = [b"" for _ in fds]
    waiting = [*fds]
    try:
        while waiting:
            left = deadline - time.monotonic()
            ready = select.select(waiting, [], [], max(left, 0))[0]
            if not ready:
                if pid := found[-1].split()[:1]:
                    os.kill(int(pid[0]), signal.SIGKILL)
                raise subprocess.TimeoutExpired("btw_backup", 0, found[0], found[1])
            for fd in ready:
                data = os.read(fd, 1 << 20)
                found[fds.index(fd)] += data
                if not data:
                    waiting.remove(fd)
    finally:
        for fd in fds:
            os.close(fd)
    return found


def _text(data: bytes) -> str:
    """What subprocess makes of it."""
    return data.decode(errors="surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def _serve(fd: int) -> None:
    """Fork for each request, and tell how each of these processes ended, until the other end is closed."""
    requests = socket.socket(fileno=fd)
    for command in cli.COMMANDS:
        importlib.import_module("btw_backup." + command.replace("-", "_"))
    gc.freeze()
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, tuple[int, int]] = {}  # by the descriptor of the process: its number, and its pipe
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready != requests.fileno():
                waiting.unregister(ready)
                pid, told = running.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(told, b"%d\n" % status)
                os.close(told)
                os.close(ready)
                continue
            request, fds, _, _ = socket.recv_fds(requests, _LONGEST, 4)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, interrupted)
                requests.close()
                for descriptor, (_, told) in running.items():
                    os.close(descriptor)
                    os.close(told)
                _become(fds, *json.loads(request))
            *streams, told = fds
            for stream in streams:
                os.close(stream)
            os.write(told, b"%d\n" % pid)
            descriptor = os.pidfd_open(pid)
            running[descriptor] = (pid, told)
            waiting.register(descriptor, select.POLLIN)


def _become(fds: list[int], argv: list[str], env: Mapping[str, str], cwd: str, umask: int) -> NoReturn:
    """Be the process of a run."""
    status: Any = 1
    try:
        *streams, told = fds
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.close(told)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        os.chdir(cwd)
        if umask >= 0:
            os.umask(umask)
        status = cli.main(argv, prog="btw_backup")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
