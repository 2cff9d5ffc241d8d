"""Whether a backup is sent off-site as soon as it is made."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..config import Offsite
from ..destination.writer import LockedDestination
from ..messages import Messages


class Sending:
    """Sends what a backup stored, and what earlier runs could not send: nothing, unless that is asked for."""

    def take(self, destination: LockedDestination) -> None:
        """Take a copy of the locked destination if its state has not been sent."""

    def finish(self) -> int:
        """Send it, and the configuration. Returns an exit status; what failed was printed."""
        return 0


@contextmanager
def sending(settings: Offsite | None, messages: Messages) -> Iterator[Sending]:
    """Send the destination that the block works on, if the configuration says so."""
    if settings is None or not settings.auto:
        yield Sending()
        return
    from .following import Following  # what is sent nowhere does not wait for it

    with ExitStack() as views:
        yield Following(settings, messages, views)
