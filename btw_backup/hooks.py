"""What the configuration has run before and after a backup, and when one fails."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from .errors import Error
from .programs import process


class Run(NamedTuple):
    """What a hook is told of the run: the only argument of a function.

    A command line gets the same as environment variables: ``BTW_BACKUP_COMMAND`` and so on.
    """

    command: str
    source: str
    destination: str
    error: str = ""


Hook = tuple[str, ...] | Callable[[Run], object]


class Hooks(NamedTuple):
    """Command lines or functions, in the order in which they run."""

    before: tuple[Hook, ...] = ()
    after: tuple[Hook, ...] = ()
    on_failure: tuple[Hook, ...] = ()

    def within(self, outer: "Hooks") -> "Hooks":
        """These hooks inside the others, which begin first and end last."""
        return Hooks(outer.before + self.before, self.after + outer.after, self.on_failure + outer.on_failure)


NO_HOOKS = Hooks()


@contextmanager
def around(hooks: Hooks, run: Run, warn: Callable[[str], None]) -> Iterator[None]:
    """Run BEFORE, and once it was begun, AFTER, whatever ends the block.

    Raises Error where BEFORE fails; ``warn`` is told where AFTER does, since the backup counts.
    """
    error = ""
    try:
        for hook in hooks.before:
            _call("BEFORE", hook, run)
        yield
    except Error as caught:
        error = str(caught)
        raise
    finally:
        _call_all("AFTER", hooks.after, run._replace(error=error), warn)


@contextmanager
def on_failure(hooks: Hooks, run: Run, warn: Callable[[str], None]) -> Iterator[None]:
    """Run ON_FAILURE where the block raises Error."""
    try:
        yield
    except Error as error:
        _call_all("ON_FAILURE", hooks.on_failure, run._replace(error=str(error)), warn)
        raise


def _call_all(name: str, hooks: Sequence[Hook], run: Run, warn: Callable[[str], None]) -> None:
    for hook in hooks:
        try:
            _call(name, hook, run)
        except Error as error:
            warn(f"{error} ({error.said.strip()})" if error.said else str(error))


def _call(name: str, hook: Hook, run: Run) -> None:
    if callable(hook):
        try:
            hook(run)
        except Exception as error:
            raise Error(f"{name}: {type(error).__name__}: {error}") from error
        return
    variables = {f"BTW_BACKUP_{key.upper()}": value for key, value in run._asdict().items()}
    # The user's own command gets all of the user's environment.
    result = process.run(hook, surroundings=os.environ, env=variables)
    if result.status != 0:
        raise Error(f"{name}: {result.ending()}", said=result.said)
