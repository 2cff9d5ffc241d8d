"""The operations that power is cut in: those that faults are tried on, and some more."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..faults import scenes
from ..faults.case import LOST, Broken, Case, run
from ..faults.scenes import OWNER, FsScene, InitScene, Scene
from ..helpers import repositories

_INCOMPLETE = ".btw-backup-restore-incomplete"
_ASIDE = ".btw-backup-restoring"


@dataclass
class FirstInitScene(InitScene):
    """``fs-init`` makes the configuration directory, too."""

    def prepare(self, top: Path) -> None:
        self.top = top
        for path in (top, top / "source"):
            path.mkdir()
        self.base = Case(self, top / "base")
        self.base.dst.mkdir()
        with self.case() as case:
            assert case.run().status == 0
            self.made = self._made(case)

    def _made(self, case: Case) -> dict[str, str]:
        return super()._made(case) if case.config.exists() else {}


@dataclass
class OtherOwnerScene(FsScene):
    """``fs`` with another owner than the chain before has."""

    def arguments(self, case: Case) -> list[str]:
        owner = "1" if case is self.base else str(OWNER)
        return ["fs", "-u", owner, str(self.source), str(case.dst)]


@dataclass
class RestoreScene(FsScene):
    """``fs-restore``: the target is whole, or marked as incomplete."""

    adds: bool = False

    def target(self, case: Case) -> Path:
        return case.dst.parent / "target"

    def restoring(self, case: Case) -> list[str]:
        return ["fs-restore", str(case.dst), str(self.target(case))]

    def arguments(self, case: Case) -> list[str]:
        return super().arguments(case) if case is self.base else self.restoring(case)

    def check_points(self, case: Case) -> bool:
        super().check_points(case)
        target = self.target(case)
        if not target.exists() or (target / _INCOMPLETE).exists() or not any(target.iterdir()):
            return False
        self.check_target(case)
        return True

    def check_target(self, case: Case) -> None:
        """Raise Broken unless the target is whole."""
        try:
            run("diff", "-r", "--no-dereference", self.source, self.target(case))
        except Broken as error:
            raise Broken(f"{LOST}{error}") from error

    def check_after(self, case: Case) -> None:
        if not self.check_points(case):
            raise Broken(f"{LOST}it had exited with 0, and the target is not whole")

    def check_retry(self, case: Case, *, there: bool) -> None:
        """The next run is into a new target."""
        if self.target(case).exists():
            shutil.rmtree(self.target(case))
        ended = case.run()
        if ended.status != 0:
            raise Broken(f"the next run exits with {ended.status}: {ended.err}")
        self.check_after(case)


@dataclass
class InPlaceScene(RestoreScene):
    """``fs-restore --in-place``: each file is the old or the new one, and no old one is lost."""

    def restoring(self, case: Case) -> list[str]:
        return ["fs-restore", "--in-place", str(case.dst), str(self.target(case))]

    def settle(self, case: Case) -> None:
        super().settle(case)
        for name in (*self._files(self.source), "of its own"):
            path = self.target(case) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._old(name))

    def check_points(self, case: Case) -> bool:
        FsScene.check_points(self, case)
        there, new = self._files(self.target(case)), self._files(self.source)
        if there.get("of its own") != self._old("of its own"):
            raise Broken(f"{LOST}a file that the backup does not hold is gone")
        for name, content in new.items():
            if there.get(name) not in (content, self._old(name)):
                raise Broken(f"{LOST}{name} is neither the old nor the new file")
            if self._old(name) not in there.values():
                raise Broken(f"{LOST}{name} was not kept")
        return new.items() <= there.items()

    def check_retry(self, case: Case, *, there: bool) -> None:
        """The next run finishes the work."""
        ended = case.run()
        if ended.status != 0:
            raise Broken(f"the next run exits with {ended.status}: {ended.err}")
        self.check_after(case)
        if (self.target(case) / _ASIDE).exists():
            raise Broken(f"the next run leaves {_ASIDE}")

    def _files(self, top: Path) -> dict[str, bytes]:
        files = (path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
        return {str(path.relative_to(top)): path.read_bytes() for path in files}

    def _old(self, name: str) -> bytes:
        return f"old {name}\n".encode()


@dataclass
class FetchScene(RestoreScene):
    """``fetch``: so is its target."""

    def first_config(self, case: Case) -> None:
        repository = self.top / "repository"
        repositories.restic(repository, "init")
        repositories.configure(case.config, repository, options="OFFSITE_AUTO = True\n")
        super().first_config(case)

    def restoring(self, case: Case) -> list[str]:
        return ["fetch", str(self.base.dst), str(self.target(case))]

    def check_target(self, case: Case) -> None:
        try:
            run("diff", "-r", "-x", ".btw-backup", self.base.dst, self.target(case))
        except Broken as error:
            raise Broken(f"{LOST}{error}") from error


def _tarball(compression: str) -> Callable[[], Scene]:
    options = f'COMPRESSION = "{compression}"\n'
    return lambda: FsScene(f"{compression}-tarball", (), options=options, type="tar")


# Add a line here, or to the scenes of faults, for each command that writes.
SCENES: dict[str, Callable[[], Scene]] = {
    **scenes.SCENES,
    **{f"{name}-tarball": _tarball(name) for name in ("zstd", "gzip", "xz")},
    "first-fs-init": lambda: FirstInitScene("first-fs-init", ()),
    "other-owner": lambda: OtherOwnerScene("other-owner", ()),
    "fs-restore": lambda: RestoreScene("fs-restore", ()),
    "fs-restore-in-place": lambda: InPlaceScene("fs-restore-in-place", ()),
    "fetch": lambda: FetchScene("fetch", ()),
}
