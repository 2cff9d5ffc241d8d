"""Files that root acts on: refused where somebody else could have written them."""

import ast
import os
import re
import stat
import traceback
from collections.abc import Iterator
from typing import Any

from ..errors import Error, naming
from .files import closing


def execute(text: bytes, path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Run the file. Returns its names in upper case with their values, and their lines."""
    scope: dict[str, Any] = {"__file__": path, "__name__": "config"}
    try:
        tree = ast.parse(text, path)
        exec(compile(tree, path, "exec"), scope)
    except SyntaxError as error:
        raise Error(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = places[-1].lineno if places else 1
        raise Error(f"{path}:{line}: {type(error).__name__}: {error}") from error
    lines = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = node.lineno
        elif isinstance(node, ast.FunctionDef):
            lines[node.name] = node.lineno
    options = {name: value for name, value in scope.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", name)}
    return options, lines


def read_trusted(path: str) -> bytes | None:
    """The file's content, None where there is no file. Raises Error where others could write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if os.path.islink(path):
            raise Error(f"{path}: a symbolic link to a file that does not exist") from None
        return None
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from error
    with naming(path), closing(fd):
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Error(f"{path}: not a regular file")
        _check_trust(path, found)
        own = os.path.dirname(os.path.abspath(path))
        for directory in _passed(os.path.abspath(path)):
            _check_trust(directory, os.stat(directory), in_own=directory == own)
        with open(fd, "rb", closefd=False) as file:
            return file.read()


def _passed(path: str) -> Iterator[str]:
    """Every directory that the system passes on the way to a file, also by symbolic links."""
    current = "/"
    waiting = path.split("/")[::-1]
    while waiting:
        yield current
        step = os.path.normpath(os.path.join(current, waiting.pop()))
        if os.path.islink(step):
            target = os.readlink(step)
            waiting += target.split("/")[::-1]
            current = "/" if target.startswith("/") else current
        else:
            current = step


def _check_trust(path: str, found: os.stat_result, *, in_own: bool = True) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Error(f"{path}: refused, because it belongs to user {found.st_uid}: chown it to yourself")
    # In a sticky directory, such as /tmp, nobody can replace what is ours (inode(7)).
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and (in_own or not found.st_mode & stat.S_ISVTX):
        raise Error(f"{path}: refused, because others can write it: use chmod go-w")
