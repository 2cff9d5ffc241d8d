"""The repository of off-site copies, kept by restic: encrypted, in snapshots that are whole or not there.

What is known of restic here was found by experiment with versions 0.14, 0.18 and 0.19.
"""

import errno
import json
import os
import re
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import Error
from . import process, versions
from .snapshots import Node, Snapshot, node, snapshot, understanding

# In seconds: how long the first question may take before a smaller one is asked besides, how long a store may
# answer neither, and how long it may take for the first if it answers the smaller: then 0.17 gives up, too.
_PROMPT = 5
_SILENCE = 14
_PATIENCE = 15 * 60
_RETRYING = re.compile(r"^\w+\(.*\) returned error, retrying after [^:]+: (.*)$", re.MULTILINE)
# The place in its source at which an error arose: it prints that after some errors.
_TRACE = re.compile(r"\n\S+\n\t\S+:\d+(?=\n|$)")
# The exit statuses of 0.17 and newer, the last from 0.17.1 on.
_NO_REPOSITORY, _IS_LOCKED, _WRONG_PASSWORD = 10, 11, 12
# The option came with 0.16. Sending usually takes less.
_RETRY_LOCK = "--retry-lock=1m"
_KNOWS_RETRY_LOCK = (0, 16)
# What it prints if another process holds the repository, or did when it was killed.
_LOCKED = "already locked"
_MISSING = ("no such file or directory", "bucket does not exist", "key does not exist", "404 Not Found")
_EXISTS = re.compile(r"already (exists|initialized)$")
_NO_CACHE, _WITHOUT = "unable to open cache", "--no-cache"
_FULL = os.strerror(errno.ENOSPC).lower()


class Exists(Error):
    """There is a repository already."""


def this_host() -> str:
    """The host that our snapshots are of."""
    return os.uname().nodename


class Repository:
    """A repository: restic's name of it, the file with its password, and variables for its store.

    ``limit_upload`` is in KiB/s, 0 for none.
    """

    def __init__(
        self, address: str, password_file: str, env: Mapping[str, str], limit_upload: int = 0
    ) -> None:
        self.address = address
        # What stands between // and @ may be a password.
        secret = re.search("//(.+)@", address)
        self._secret = secret[1] if secret else None
        self.shown = self._masked(address)
        # It keeps its cache below HOME, which not everything sets that runs us; the rate is that of
        # lines that say how far it is.
        defaults = {"HOME": os.path.expanduser("~"), "RESTIC_PROGRESS_FPS": "1"}
        fixed = {"RESTIC_REPOSITORY": address, "RESTIC_PASSWORD_FILE": password_file}
        self._env = {**defaults, **env, **fixed}
        self._options = [f"--limit-upload={limit_upload}"] if limit_upload else []

    def create(self) -> None:
        """Make the repository. Raises Exists if there is one."""
        try:
            self._run("init")
        except Error as error:
            if _EXISTS.search(str(error)):
                raise Exists(*error.lines) from error
            raise

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first. Raises Error if the repository can't be read."""
        with understanding():
            found = [
                snapshot(fields) for fields in json.loads(self._run("snapshots", "--no-lock", "--json")) or ()
            ]
        return sorted(found, key=lambda one: one.time)

    def store(
        self,
        within: int,
        name: str,
        tags: Sequence[str],
        parent: str | None,
        advance: Callable[[int], None],
    ) -> int:
        """Store the tree ``name`` of the open directory ``within``. A tag must not hold a comma.

        ``parent``: the snapshot that it is compared with; ``advance`` is called with each number of
        bytes read. Returns how many bytes the repository grew by, before they were compressed. Raises
        Error if not all could be stored.
        """
        argv = ["backup", "--json", f"--host={this_host()}", f"--tag={','.join(tags)}"]
        argv.append("--ignore-ctime")  # which changes with each new link to a file
        argv += [f"--parent={parent}"] if parent else ["--force"]
        done = 0
        summary: dict[str, Any] = {}

        def read(line: str) -> None:
            nonlocal done, summary
            message = json.loads(line)
            if message["message_type"] == "status":
                advance(max(message.get("bytes_done", 0) - done, 0))
                done = max(message.get("bytes_done", 0), done)
            elif message["message_type"] == "summary":
                summary = message

        with understanding():
            result = self._unlocking([*argv, "--", name], read, within)
            if result.status == 3:  # some could not be read, and the rest was stored
                with suppress(Error):  # the store may only accept additions
                    self._run("forget", summary["snapshot_id"])
            if result.status != 0:
                raise self._failure(result)
            return int(summary["data_added"])

    def forget(self, tag: str, keep: Sequence[str]) -> None:
        """Remove all snapshots of this host with this tag that these options do not keep."""
        host = f"--host={this_host()}"
        self._run("forget", "--prune", "--group-by=", host, f"--tag={tag}", *keep)

    def restore(self, id_: str, target: int) -> None:
        """Restore a snapshot into an open directory, and read all of it again to compare it."""
        self._run("restore", id_, "--target=.", "--verify", within=target)

    def nodes(self, id_: str) -> Iterator[Node]:
        """What a snapshot holds."""
        with understanding():
            for line in self._run("ls", "--no-lock", "--json", id_).splitlines():
                fields = json.loads(line)
                # Only 0.17 and newer have the first, and a later version won't have the second.
                if fields.get("message_type", fields.get("struct_type")) == "node":
                    yield node(fields)

    def check(self, subset: str | None) -> None:
        """Check the repository, and read the data in it, or a part such as ``5%`` or ``1/7``.

        Raises Error, with restic's stderr, if something is damaged.
        """
        data = "--read-data" if subset is None else f"--read-data-subset={subset}"
        result = self._unlocking(["check", data], lambda line: None, None)
        if result.status != 0:
            raise Error(*self._failure(result).lines, stderr=self._masked("\n".join(_plain(result.stderr))))

    def _run(self, *argv: str, within: int | None = None) -> str:
        """Return what restic prints. Raises Error with its reason if it fails."""
        lines: list[str] = []
        result = self._unlocking(argv, lines.append, within)
        if result.status != 0:
            raise self._failure(result)
        return "".join(lines)

    def _unlocking(
        self, argv: Sequence[str], read: Callable[[str], None], within: int | None
    ) -> process.Result:
        result = self._try(argv, read, within)
        if result.status == _IS_LOCKED or (result.status != 0 and _LOCKED in result.stderr):
            self._try(["unlock"], lambda line: None, None)  # removes what a dead process left, no other
            waiting = [_RETRY_LOCK] if versions.version("restic") >= _KNOWS_RETRY_LOCK else []
            result = self._try([*waiting, *argv], read, within)
        return result

    def _try(self, argv: Sequence[str], read: Callable[[str], None], within: int | None) -> process.Result:
        printed = False
        with self._started(argv, within) as program:
            if argv[0] in ("snapshots", "init"):
                self._await_answer(program)
            for line in program.stdout:
                printed = True
                read(line.decode(errors="surrogateescape"))
            result = program.wait()
        # If it can't open its cache, 0.19 fails; older versions go on without one.
        failed = result.status == 1 and _NO_CACHE in result.stderr
        if failed and not printed and _WITHOUT not in self._options:
            self._options.append(_WITHOUT)
            return self._try(argv, read, within)
        return result

    def _started(self, argv: Sequence[str], within: int | None = None) -> process.Program:
        return process.Program(
            ["restic", *self._options, *argv], stdout=process.PIPE, cwd=within, env=self._env
        )

    def _await_answer(self, program: process.Program) -> None:
        """Wait until restic prints something or ends. If a store does not answer, it waits for ever.

        Listing thousands of snapshots takes long, too: the smallest question there is shows whether the store
        answers. Raises Error, with restic's reason if it has printed one, if it does not.
        """
        begun = time.monotonic()
        if _speaks(_PROMPT, program):
            return
        with self._started(["cat", "config", "--no-lock"]) as smallest:
            answers = _speaks(_SILENCE - _PROMPT, program, smallest)
        limit = _PATIENCE if answers else _SILENCE
        while not _speaks(1, program):
            if time.monotonic() - begun >= limit:
                reasons = _RETRYING.findall(program.errors()) or [f"no answer within {limit} seconds"]
                raise self._error(reasons[-1], missing=reasons[-1].endswith(_MISSING))

    def _failure(self, result: process.Result) -> Error:
        lines = _plain(result.stderr)
        reason = next((line for line in lines if line.startswith("Fatal: ")), "").removeprefix("Fatal: ")
        for telling in (_LOCKED, _FULL):  # which it says without that word
            reason = next((line for line in lines if telling in line), reason)
        last = [result.ending(), *lines, *_RETRYING.findall(result.stderr)][-1]
        reason = (reason or last).strip().rstrip(".")
        if "wrong password" in reason or result.status == _WRONG_PASSWORD:
            reason = "its password is not the one in OFFSITE_PASSWORD_FILE"
        missing = "config file" in reason and reason.endswith(_MISSING)
        return self._error(reason, missing=missing or result.status == _NO_REPOSITORY)

    def _error(self, reason: str, *, missing: bool) -> Error:
        if missing:
            reason = "there is none here: make it with sync --init, once (or mount its disk)"
        return Error(f"off-site repository {self.shown}: {self._masked(reason)}")

    def _masked(self, text: str) -> str:
        known = text if self._secret is None else text.replace(self._secret, "…")
        return re.sub(r"//[^/\s]*@", "//…@", known)


def _speaks(seconds: float, *programs: process.Program) -> bool:
    """Return whether one of them prints something or ends within that time."""
    return bool(select.select([program.stdout for program in programs], [], [], seconds)[0])


def _plain(stderr: str) -> list[str]:
    """Split restic's stderr into lines; some of them are JSON objects."""
    return _TRACE.sub("", "\n".join(map(_words, stderr.splitlines()))).splitlines()


def _words(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        fields = json.loads(line)
        if fields["message_type"] == "exit_error":
            return "Fatal: " + str(fields["message"]).removeprefix("Fatal: ")
        return f"{fields['item']}: {fields['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return line
