"""The programs to compare, each with what it needs to back up a source."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from btw_backup.programs import compressors
from btw_backup.programs.tar import Source, tar_command

from .measure import BTW_BACKUP, Task, shell

# Longer than the time in which a file could change without a new timestamp.
_SETTLING = 2.5
# Chains never end, so each changed run of a benchmark adds an incremental.
ENDLESS = "MAX_INCREMENTAL_COUNT = 100000\nMAX_INCREMENTAL_SPAN = '10000d'\n"


class Ours:
    """btw-backup with one source, one destination and one configuration."""

    def __init__(
        self, top: Path, source: Path, kind: str, dst: Path | None = None, options: str = ""
    ) -> None:
        self.source = source
        self.dst = dst or top / "dst"
        self.dst.mkdir(parents=True, exist_ok=True)
        self.config_dir = top / "config"
        call(self._argv("fs-init", "--type", kind, source, "benchmark"))
        (working_directory,) = self.config_dir.iterdir()
        with (working_directory / "config.py").open("a") as file:
            file.write("\n" + ENDLESS + options)

    def backup(self, prepare: Callable[[], None] = lambda: None) -> Task:
        """A backup."""
        return Task(self._argv("fs", self.source, self.dst), prepare)

    def first(self) -> Task:
        """A backup into an empty destination."""
        return self.backup(lambda: emptied(self.dst))

    def restore(self, target: Path, *options: str, paths: Sequence[str] = ()) -> Task:
        """Restoring the newest point, or what the options say."""
        return Task(self._argv("fs-restore", *options, self.dst, target, *paths), lambda: emptied(target))

    def stage(self) -> Path:
        """Where it stages what it stores."""
        (working_directory,) = self.config_dir.iterdir()
        return working_directory / "backup"

    def verify(self) -> Task:
        """Reading all points."""
        return Task(self._argv("verify", self.dst))

    def newest(self) -> Path:
        """The newest backup."""
        return max(self.dst.glob("2*"))

    def points(self) -> list[str]:
        """The times of all points."""
        listed = subprocess.check_output([BTW_BACKUP, "list", self.dst], text=True)
        return [line.strip() for line in listed.splitlines()]

    def _argv(self, *args: str | Path) -> list[str | Path]:
        return [BTW_BACKUP, "--config-dir", self.config_dir, *args]


def restic(top: Path, source: Path) -> Task:
    """``restic backup`` into a new repository, with its cache next to it."""
    settings = {"RESTIC_REPOSITORY": str(top / "restic"), "RESTIC_PASSWORD": "benchmark"}
    env = {**settings, "RESTIC_CACHE_DIR": str(top / "restic-cache")}
    call(["restic", "init", "--quiet"], env)
    return Task(["restic", "backup", "--quiet", source], env=env)


def borg(top: Path, source: Path) -> Task:
    """``borg create`` into a new repository, unencrypted."""
    settings = {"BORG_REPO": str(top / "borg"), "BORG_BASE_DIR": str(top / "borg-base")}
    env = {**settings, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    call(["borg", "init", "--encryption=none"], env)
    return Task(["borg", "create", "::{utcnow}-{pid}", source], env=env)


def tar(source: Path) -> str:
    """The shell command that writes the archive to its standard output, with our own options."""
    return shlex.join(tar_command(Source(str(source), "", (), (), False)))


def tar_compressed(source: Path, output: Path) -> Task:
    """Tar, piped to the compressor that we use too."""
    packed = f"{tar(source)} | {shlex.join(compressors.compressor('bzip2'))} > {shlex.quote(str(output))}"
    return Task(shell(packed), lambda: output.unlink(missing_ok=True), source)


def tar_and_rdiff_backup(source: Path, stage: Path, repository: Path) -> list[str]:
    """The two commands that do by hand what a run of type rdiff does."""
    staged = shlex.quote(str(stage / "backup.tar"))
    argv = ["rdiff-backup", "-v2", "backup", str(stage), str(repository)]
    return shell(f"{tar(source)} > {staged}", shlex.join(argv))


def on_disk(commands: list[str], repository: Path) -> list[str]:
    """The same commands, and the repository written to the disk at their end, as ours is."""
    return [*commands[:-1], f"{commands[-1]}\nsync {shlex.quote(str(repository))}"]


def decompress(packed: Path, output: str = "/dev/null") -> list[str]:
    """Decompressing a tarball with the decompressor that we use too."""
    argv = [*compressors.compressor("bzip2"), "-d"]
    return shell(f"{shlex.join(argv)} < {shlex.quote(str(packed))} > {shlex.quote(output)}")


def emptied(directory: Path) -> None:
    """Make the directory an empty one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def changed(file: Path) -> None:
    """Change the file's content but not its size, and wait until the change is in the past."""
    content = file.read_bytes()
    stamp = f"{time.time_ns()}".encode()[: len(content)]
    with file.open("r+b") as opened:
        opened.write(stamp)
    settle()


def call(argv: list[str | Path] | list[str], env: dict[str, str] | None = None) -> None:
    """Run a command that must succeed."""
    subprocess.run(argv, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, check=True)


def settle() -> None:
    """Wait until all that was changed is in the past."""
    time.sleep(_SETTLING)
