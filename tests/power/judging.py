"""What must be true of a disk after a power cut."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from btw_backup.destination.lock import PRIVATE

from ..faults.case import LOST, Broken, Case, run
from ..faults.points import digest_of
from .disks import Disk
from .moments import Moment


class _Left(NamedTuple):
    """What a power cut left: digests of everything, and of what others may see."""

    whole: str
    visible: str
    ended: bool


class Judge:
    """Judges what power cuts left of one run. Disks that hold the same are judged once.

    On the last and so many others the program runs again.
    """

    def __init__(self, case: Case, disk: Disk, rng: random.Random, sample: int) -> None:
        self._case = case
        self._disk = disk
        self._rng = rng
        self._sample = sample
        self._left: dict[tuple[Path, bool], _Left] = {}
        self._wrong: dict[_Left, str] = {}

    def judge(self, moments: Sequence[Moment]) -> list[str]:
        """Return what is wrong, if anything, at each moment."""
        known: dict[tuple[str, bool], str] = {}
        images: dict[_Left, Path] = {}
        for image, ended in dict.fromkeys((moment.image, moment.ended) for moment in moments):
            with self._disk.after(image):
                left = self._left[image, ended] = self._examine(ended)
                if (key := (left.visible, ended)) not in known:
                    known[key] = _wrong(_check_points, self._case, ended)
            self._wrong[left] = known[key]
            images.setdefault(left, image)
        for left in self._sampled():
            with self._disk.after(images[left]):
                self._wrong[left] = self._wrong[left] or _wrong(_check_retry, self._case)
        return [self._wrong[self._left[moment.image, moment.ended]] for moment in moments]

    def disks(self) -> int:
        """How many different disks it has seen."""
        return len({left.whole for left in self._wrong})

    def _examine(self, ended: bool) -> _Left:
        root = self._disk.root
        return _Left(digest_of(root), digest_of(root, PRIVATE, self._disk.bystander.name), ended)

    def _sampled(self) -> list[_Left]:
        """The last disk, and so many others, those first where others may see something new."""
        *others, last = self._wrong
        self._rng.shuffle(others)
        firsts = {(left.visible, left.ended): left for left in others}
        others.sort(key=lambda left: left not in firsts.values())
        return [*others[: self._sample], last]


def _wrong(check: Callable[..., None], *args: object) -> str:
    try:
        check(*args)
    except Broken as error:
        return str(error)
    return ""


def _check_points(case: Case, ended: bool) -> None:
    """Raise Broken unless everything is there that must be."""
    there = case.scene.check_points(case)
    if ended:
        if case.scene.adds and not there:
            raise Broken(f"{LOST}it had exited with 0, and what it made is missing")
        case.scene.check_after(case)
    if case.list():
        try:
            run(*case.command("verify", case.dst), env=case.environment)
        except Broken as error:
            raise Broken(f"{LOST}{error}") from error


def _check_retry(case: Case) -> None:
    case.scene.check_retry(case, there=case.scene.check_points(case))
