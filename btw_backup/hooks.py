"""What the configuration has run before and after a backup, and when one fails."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from .errors import Error, Terminated, explained, held_signals
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

    Raises Error if BEFORE fails; if AFTER fails it only calls ``warn``, since the backup counts.
    """
    with _calling("AFTER", hooks.after, run, warn, always=True):
        for hook in hooks.before:
            _call("BEFORE", hook, run)
        yield


def on_failure(hooks: Hooks, run: Run, warn: Callable[[str], None]) -> AbstractContextManager[None]:
    """Run ON_FAILURE if the block raises, be it Error, a signal, or a mistake of ours."""
    return _calling("ON_FAILURE", hooks.on_failure, run, warn, always=False)


@contextmanager
def _calling(
    name: str, hooks: Sequence[Hook], run: Run, warn: Callable[[str], None], *, always: bool
) -> Iterator[None]:
    """Run the hooks, once and to their end, if the block raises, or ``always``.

    A signal that arrives meanwhile ends the backup afterwards.
    """
    error = ""
    begun = False

    def call() -> None:
        nonlocal begun
        with held_signals() as held:
            begun = True
            _call_all(name, hooks, run._replace(error=error), warn)
        if held and not error:
            signal.raise_signal(held[0])

    try:
        try:
            yield
        except BaseException as caught:
            error = explained(caught)
            raise
        finally:
            if error or always:
                call()
    except Terminated as end:  # which may have arrived just before they were held
        if not begun:
            error = error or explained(end)
            call()
        raise


def _call_all(name: str, hooks: Sequence[Hook], run: Run, warn: Callable[[str], None]) -> None:
    for hook in hooks:
        try:
            _call(name, hook, run)
        except Error as error:
            warn(f"{error} ({error.stderr.strip()})" if error.stderr else str(error))


def _call(name: str, hook: Hook, run: Run) -> None:
    """Raise Error if the hook fails, whatever it raises: SystemExit is not a success."""
    if not callable(hook):
        variables = {f"BTW_BACKUP_{key.upper()}": value for key, value in run._asdict().items()}
        # The user's own command gets all of the user's environment.
        group = name != "BEFORE"
        result = process.run(hook, surroundings=os.environ, env=variables, own_group=group)
        if result.status != 0:
            raise Error(f"{name}: {result.ending()}", stderr=result.stderr)
        return
    try:
        hook(run)
    except Terminated:
        raise
    except BaseException as error:
        raise Error(f"{name}: {explained(error)}") from error
