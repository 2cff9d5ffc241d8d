"""Files that root acts on: refused if somebody else could have written them."""

import ast
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import Error, Located, prefixing_errors
from .directories import Directory
from .files import closed_at_end

_MOST_LINKS = 40  # as the system has it (path_resolution(7))


def execute(text: bytes, path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Run a configuration file. Returns the values of its names in upper case, and their lines."""
    scope: dict[str, Any] = {"__file__": path, "__name__": "config"}
    try:
        tree = ast.parse(text, path)
        exec(compile(tree, path, "exec"), scope)
    except SyntaxError as error:
        raise Error(Located(error.msg, path, error.lineno or 1)) from error
    except (Exception, SystemExit) as error:
        import traceback  # what has no such error does not wait for it

        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = places[-1].lineno if places else 1
        raise Error(Located(f"{type(error).__name__}: {error}", path, line)) from error
    lines = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = node.lineno
        elif isinstance(node, ast.FunctionDef):
            lines[node.name] = node.lineno
    options = {name: value for name, value in scope.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", name)}
    return options, lines


def read_trusted(path: str) -> bytes | None:
    """Return the file's content, None if there is no file. Raises Error if others could write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if os.path.islink(path):
            raise Error(Located("a symbolic link to a file that does not exist", path)) from None
        return None
    except OSError as error:
        raise Error(Located(error.strerror or str(error), path)) from error
    with prefixing_errors(path), closed_at_end(fd):
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Error(Located("not a regular file", path))
        _check_trust(path, found)
        own = os.path.dirname(os.path.abspath(path))
        for directory in _passed(os.path.abspath(path)):
            _check_trust(directory, os.stat(directory), in_own=directory == own)
        with open(fd, "rb", closefd=False) as file:
            return file.read()


class Way(NamedTuple):
    """Where a path leads: to ``real``, in which there is no link.

    ``secure``: nobody but root and the caller can have put a symbolic link on the way.
    """

    real: str
    secure: bool


def resolve(path: str) -> Way:
    """Follow an absolute path as the system does, and check who could have redirected it."""
    real, secure, passed_others = "/", True, False
    for step in _steps(path):
        passed_others = passed_others or not _is_ours(os.lstat(step.directory))
        if step.is_link:
            secure = secure and not passed_others and os.lstat(step.path).st_uid in (0, os.geteuid())
        real = step.path
    return Way(real, secure)


@contextmanager
def opened_as_resolved(real: str) -> Iterator[Directory]:
    """Open the directory that ``resolve`` found. Raises Error if a link leads elsewhere by now."""
    with prefixing_errors(real):
        found = Directory.at(real)
    with found:
        if found.path() != real:
            raise Error(f"{real}: refused, because it has been replaced by a symbolic link meanwhile")
        yield found


class _Step(NamedTuple):
    """A name that is looked up in a directory."""

    directory: str
    path: str
    is_link: bool


def _passed(path: str) -> Iterator[str]:
    """Yield every directory on the way to a file, following symbolic links."""
    return (step.directory for step in _steps(path))


def _steps(path: str) -> Iterator[_Step]:
    current = "/"
    waiting = path.split("/")[::-1]
    links = 0
    while waiting:
        step = os.path.normpath(os.path.join(current, waiting.pop()))
        is_link = os.path.islink(step)
        yield _Step(current, step, is_link)
        if is_link:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(step)
            waiting += target.split("/")[::-1]
            current = "/" if target.startswith("/") else current
        else:
            current = step


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not _others_write(found, in_own=False)


def _others_write(found: os.stat_result, *, in_own: bool) -> bool:
    # In a sticky directory, such as /tmp, nobody can replace what is ours (inode(7)).
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return bool(writable and (in_own or not found.st_mode & stat.S_ISVTX))


def _check_trust(path: str, found: os.stat_result, *, in_own: bool = True) -> None:
    if found.st_uid not in (0, os.geteuid()):
        refused = f"refused, because it belongs to user {found.st_uid}: chown it to yourself"
        raise Error(Located(refused, path))
    if _others_write(found, in_own=in_own):
        raise Error(Located("refused, because others can write it: use chmod go-w", path))
