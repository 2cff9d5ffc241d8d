"""Working directories: ``<name>.<hash>`` under the configuration directory."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from .errors import Error, prefixing_errors, uninterrupted
from .system.directories import Directory
from .system.room import room_on
from .system.trust import resolve

_PREPARED = ".fs-init."
_STAGE = "run."
_SOURCE, _STAGING = "src", "backup"


class Workdir(NamedTuple):
    """A working directory and the source that it is for."""

    path: str
    source: str

    @property
    def config_file(self) -> str:
        return os.path.join(self.path, "config.py")

    @property
    def staging(self) -> str:
        return os.path.join(self.path, _STAGING)

    @property
    def real(self) -> str:
        """A link like ``src``, to where the source really was at first."""
        return os.path.join(self.path, "real")


def normalize(source: str) -> str:
    """Return the source's path in the form in which paths are compared. Raises Error for a relative one."""
    if not source.startswith("/"):
        raise Error("the source path must be absolute")
    return "/" + os.path.normpath(source).lstrip("/")


def find(config_dir: str, source: str) -> Workdir | None:
    """Return the working directory for the normalized source; None if there is none."""
    for candidate in all_in(config_dir):
        if candidate.source == source:
            return candidate
    return None


def all_in(config_dir: str) -> Iterator[Workdir]:
    """Yield every working directory. Raises Error if the configuration directory can't be read."""
    try:
        names = sorted(os.listdir(config_dir))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Error(f"{config_dir}: {error.strerror}") from error
    for name in names:
        if name.startswith(_PREPARED):
            continue
        path = os.path.join(config_dir, name)
        try:
            source = os.readlink(os.path.join(path, _SOURCE))
        except OSError:  # not a working directory
            continue
        yield Workdir(path, "/" + os.path.normpath(os.path.join(path, source)).lstrip("/"))


def broken_in(config_dir: str) -> Iterator[str]:
    """Yield the directories that hold a configuration file and no link to a source: no backup finds them."""
    for name in sorted(os.listdir(config_dir)):
        path = os.path.join(config_dir, name)
        if os.path.isfile(os.path.join(path, "config.py")) and not os.path.islink(os.path.join(path, "src")):
            yield path


def is_passing(name: str, within: Directory) -> bool:
    """Whether an entry of the configuration directory, or of a working directory, belongs to a run."""
    return name.startswith(_PREPARED) or (name == _STAGING and within.holds(_SOURCE))


def check_name(name: str) -> None:
    """Raise Error for a name that can't begin a working directory's name."""
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise Error(f"not a name for a working directory: {name!r}")


@contextmanager
def config_dir_locked(path: str) -> Iterator[None]:
    """Hold the configuration directory, made when missing, against another ``fs-init``."""
    with prefixing_errors(path):
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create(config_dir: str, name: str, source: str, config_text: str) -> str:
    """Make a working directory, whole or not at all. Returns its path.

    The configuration directory is locked by the caller.
    """
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    path = os.path.join(config_dir, f"{name}.{digest}")
    with prefixing_errors(config_dir):
        for left in os.listdir(config_dir):
            if left.startswith(_PREPARED):  # by a run that was killed
                shutil.rmtree(os.path.join(config_dir, left))
        if os.path.lexists(path):
            raise Error(f"{path} is in the way: it stands for another source")
        prepared = os.path.join(config_dir, _PREPARED + os.urandom(4).hex())
        try:
            os.mkdir(prepared, 0o700)
            os.symlink(source, os.path.join(prepared, _SOURCE))
            os.symlink(resolve(source).real, os.path.join(prepared, "real"))
            os.mkdir(os.path.join(prepared, _STAGING), 0o700)
            with open(os.path.join(prepared, "config.py"), "x", encoding="utf-8") as file:
                file.write(config_text)
                file.flush()
                os.fsync(file.fileno())
            with Directory.at(prepared) as made:
                made.sync()
            os.rename(prepared, path)
        except BaseException:
            with uninterrupted():
                shutil.rmtree(prepared, ignore_errors=True)
            raise
        with Directory.at(config_dir) as holding:
            holding.sync()
    return path


def recorded_real(workdir: Workdir) -> str | None:
    """Return the real path recorded for the source; None if there is none yet."""
    with suppress(FileNotFoundError):
        return os.readlink(workdir.real)
    return None


def record_real(workdir: Workdir, real: str) -> str:
    """Return the real path recorded for the source; record this one if there is none yet."""
    with prefixing_errors(workdir.real):
        if not os.path.lexists(workdir.real):  # made by an older version
            with Directory.at(workdir.path) as own, suppress(FileExistsError):
                os.symlink(real, "real", dir_fd=own.fileno())
                own.sync()
        return os.readlink(workdir.real)


@contextmanager
def staging(workdir: Workdir) -> Iterator[Directory]:
    """Yield a private directory to stage a tarfile in, removed at the end.

    Runs to different destinations share the working directory, so each stages in a directory of
    its own and holds a lock on it.
    """
    name = _STAGE + os.urandom(4).hex()
    with (
        prefixing_errors(workdir.staging),
        _locked(workdir) as parent,
        parent.temporary(name) as stage,
        room_on(workdir.staging, stage),
    ):
        fcntl.flock(stage.fileno(), fcntl.LOCK_EX)
        fcntl.flock(parent.fileno(), fcntl.LOCK_UN)
        yield stage


def remove_left(workdir: Workdir) -> None:
    """Remove what killed runs have staged: the directories whose lock nobody holds."""
    with prefixing_errors(workdir.staging), _locked(workdir) as parent:
        for name in parent.names():
            if name.startswith(_STAGE):
                with parent.open(name) as stage, suppress(BlockingIOError):
                    fcntl.flock(stage.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    parent.remove(name)


@contextmanager
def _locked(workdir: Workdir) -> Iterator[Directory]:
    """The open staging directory, made when missing, while no other run begins to stage."""
    os.makedirs(workdir.staging, mode=0o700, exist_ok=True)
    with Directory.at(workdir.staging) as parent:
        fcntl.flock(parent.fileno(), fcntl.LOCK_EX)
        yield parent
