"""What a filesystem backup would store, and what it would leave out by which rule: told by inodes alone."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from errno import EACCES
from heapq import nlargest

from ..archive.names import member_of, order_of, path_of
from ..config import FsOptions
from ..destination.reader import open_directory
from ..errors import INCOMPLETE
from ..messages import Messages, show, size
from ..programs.tar import TAG, Source
from ..workdir import Workdir
from .examination import examine_source
from .exclusion import Patterns
from .walk import CACHE_TAG, Entry, Tree, walk, with_large

_MOST_DIRECTORIES = 10
# A directory is not listed if more of its bytes than this are in one directory in it.
_NEARLY_ALL = 0.9


def show_preview(work: Workdir, dst: str, options: FsOptions, messages: Messages) -> int:
    """Print what a backup would store and leave out. Changes nothing. Returns the exit status."""
    with open_directory(dst):
        source = examine_source(work, [dst, work.path], options, records=False)
        preview = _Preview(source, options, dst)
    for line in preview.lines():
        show(line)
    for error in preview.unreadable:
        messages.error(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return INCOMPLETE if preview.unreadable else 0


class _Count:
    """A number of paths, and of the bytes of the files among them; one with several names counts once."""

    def __init__(self) -> None:
        self.paths = 0
        self.bytes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, inode: os.stat_result) -> int:
        """Count a path. Returns the bytes that it adds."""
        self.paths += 1
        if not stat.S_ISREG(inode.st_mode):
            return 0
        if inode.st_nlink > 1:
            identity = inode.st_dev, inode.st_ino
            if identity in self._linked:
                return 0
            self._linked.add(identity)
        self.bytes += inode.st_size
        return inode.st_size

    def add_tree(self, path: bytes) -> None:
        """Count a path and what is below it, but nothing that is mounted there."""
        with suppress(OSError):
            device = os.lstat(os.path.dirname(path)).st_dev
            inode = os.lstat(path)
            if not stat.S_ISDIR(inode.st_mode) or inode.st_dev != device:
                self.add(inode)
                return
            below = Tree(path, b"", None, device, stays=True, tags=())
            for _, found, _ in walk(below, failed=lambda error: None):
                self.add(found)


class _Rule(_Count):
    """What leaves something out, and how much that is. ``is_set``: the configuration asks for it."""

    def __init__(self, label: str, *, is_set: bool) -> None:
        super().__init__()
        self.label = label
        self.is_set = is_set


class _Rules:
    """Everything that leaves something out of a source."""

    def __init__(self, source: Source, options: FsOptions, dst: str) -> None:
        self._own: dict[bytes, _Rule] = {}
        for path in source.left_out:
            is_dst = os.path.join(source.directory, path) == os.path.realpath(dst)
            label = "the destination" if is_dst else "the working directory"
            self._own[order_of(os.fsencode(path))] = _Rule(label, is_set=False)
        self._patterns = Patterns(source.exclude)
        named = [*(("EXCLUDE", pattern) for pattern in options.exclude)]
        named += [("EXCLUDE_FROM", pattern) for pattern in options.exclude_from]
        self._of_patterns = [_Rule(f"{option} {pattern!r}", is_set=True) for option, pattern in named]
        self.tags = {os.fsencode(TAG): _Rule(TAG, is_set=False)}
        for name in options.exclude_if_present:
            self.tags[os.fsencode(name)] = _Rule(f"EXCLUDE_IF_PRESENT {name!r}", is_set=True)
        if options.exclude_caches:
            self.tags.setdefault(CACHE_TAG, _Rule("EXCLUDE_CACHES", is_set=True))
        self._large = _Rule("EXCLUDE_LARGER_THAN", is_set=source.larger_than is not None)
        self._large_files = {order_of(os.fsencode(path)) for path in source.large}
        self.file_systems = _Rule(
            "ONE_FILE_SYSTEM (mount points: what is mounted there is not counted)",
            is_set=source.one_file_system,
        )

    def of(self, order: bytes) -> _Rule | None:
        """The rule that leaves out a path by its name or size; None if none does."""
        if order in self._own:
            return self._own[order]
        pattern = self._patterns.first(member_of(order))
        if pattern is not None:
            return self._of_patterns[pattern]
        return self._large if order in self._large_files else None

    def all(self) -> list[_Rule]:
        """Those that are set, or leave something out."""
        rules = [*self._of_patterns, *self.tags.values(), self._large, self.file_systems, *self._own.values()]
        return [rule for rule in rules if rule.is_set or rule.paths]


class _Preview:
    """What a backup would store and leave out. ``unreadable``: what it could not read."""

    def __init__(self, source: Source, options: FsOptions, dst: str) -> None:
        source = with_large(source)
        self.stored = _Count()
        self.unreadable: list[OSError] = []
        self._own_bytes: dict[bytes, int] = {}  # of the files in each directory, by its order
        self._rules = _Rules(source, options, dst)
        left_out: dict[bytes, _Rule] = {}

        def prunes(order: bytes) -> bool:
            rule = self._rules.of(order)
            if rule is not None:
                left_out[order] = rule
            return rule is not None

        tree = Tree.of(source, prunes)
        for entry in walk(tree, failed=self._failed):
            left_out.pop(entry[0], None)  # a tag is stored even so
            self._add(tree, entry)
        for order, rule in left_out.items():
            rule.add_tree(os.path.join(tree.top, path_of(order)))

    def _failed(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it has vanished
            self.unreadable.append(error)

    def _add(self, tree: Tree, entry: Entry) -> None:
        order, inode, _ = entry
        path = os.path.join(tree.top, path_of(order))
        above, _, name = order.rpartition(b"\0")
        kind = stat.S_IFMT(inode.st_mode)
        if kind == stat.S_IFSOCK:
            return
        if kind == stat.S_IFREG and not os.access(path, os.R_OK, effective_ids=True):
            self.unreadable.append(PermissionError(EACCES, os.strerror(EACCES), path))
            return
        added = self.stored.add(inode)
        if kind == stat.S_IFDIR:
            self._own_bytes[order] = 0
            if not tree.enters(inode):
                self._rules.file_systems.add(inode)
        elif order != order_of(tree.member):
            self._own_bytes[above] += added
        if name in self._rules.tags:
            self._add_tagged(tree, os.path.dirname(path), name)

    def _add_tagged(self, tree: Tree, directory: bytes, tag: bytes) -> None:
        with suppress(OSError):
            names = os.listdir(directory)
            if tree.tag(directory, names) == tag:
                for name in names:
                    if name != tag:
                        self._rules.tags[tag].add_tree(os.path.join(directory, name))

    def lines(self) -> Iterator[str]:
        """Yield what is printed."""
        yield f"would store {self.stored.paths} members, {size(self.stored.bytes)}"
        listed = _largest(self._own_bytes)
        if listed:
            yield "the largest directories:"
        for order, count in listed:
            yield f"{size(count):>9}  {os.fsdecode(member_of(order))}"
        rules = self._rules.all()
        if rules:
            yield "would leave out:"
        for rule in rules:
            yield f"{size(rule.bytes):>9}  {rule.paths:>9} paths  {rule.label}"


def _largest(own: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    """The directories in which most is, below the source itself: the bytes below each, most first.

    If nearly all of a directory is in one directory in it, it is only on the way to that.
    """
    below = dict(own)
    largest: dict[bytes, int] = {}  # of the directories in each
    for order in sorted(own, reverse=True):  # what is in a directory comes after it
        above = order.rpartition(b"\0")[0]
        if order:
            below[above] += below[order]
            largest[above] = max(largest.get(above, 0), below[order])
    listed = [
        (order, count)
        for order, count in below.items()
        if order and count and largest.get(order, 0) <= _NEARLY_ALL * count
    ]
    return nlargest(_MOST_DIRECTORIES, listed, key=lambda entry: entry[1])
