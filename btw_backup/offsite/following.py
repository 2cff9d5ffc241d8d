"""A destination, and the configuration, sent off-site after a backup."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..config import Offsite
from ..destination.view import View, viewing
from ..destination.writer import LockedDestination
from ..errors import NOT_SENT, Error, prefixing_errors
from ..messages import Messages
from . import configuration
from .automatic import Sending
from .sending import is_sent, send
from .state import State, examine
from .stores import repositories


class Following(Sending):
    """Really sends it. Made by ``automatic.sending``."""

    def __init__(self, settings: Offsite, messages: Messages, views: ExitStack) -> None:
        self._settings = settings
        self._messages = messages
        self._views = views
        self._lacking: list[str] = []
        self._taken: tuple[View, State] | None = None
        self._failed: list[str] = []
        self._status = 0

    def take(self, destination: LockedDestination) -> None:
        addresses = self._settings.addresses
        with self._failing(destination.path, *addresses):
            state = examine(destination)
            self._lacking = [one for one in addresses if not is_sent(destination, state, one)]
            if self._lacking:
                self._taken = self._views.enter_context(viewing(destination)), state

    def finish(self) -> int:
        if self._taken is not None:
            view, state = self._taken
            with self._failing(view.path, *self._lacking):
                for repository in repositories(self._settings, self._lacking):
                    with self._failing(view.path, repository.address):
                        send(view, state, repository, self._settings, self._messages)
        self._send_configuration()
        return self._status

    def _send_configuration(self) -> None:
        """Send the configuration directory to the repositories that have not failed already."""
        settings = self._settings
        with self._failing(settings.config_dir, of_configuration=True):
            lacking = [
                address
                for address in settings.addresses
                if address not in self._failed and not configuration.is_sent(settings, address)
            ]
            if lacking:
                with configuration.staging(settings) as staged:
                    for repository in repositories(settings, lacking):
                        with self._failing(settings.config_dir, repository.address, of_configuration=True):
                            configuration.send(staged, repository, settings, self._messages)

    @contextmanager
    def _failing(self, path: str, *addresses: str, of_configuration: bool = False) -> Iterator[None]:
        """Report an error, and that the repositories at these addresses lack something."""
        try:
            with prefixing_errors(path):
                yield
        except Error as error:
            what = "the off-site copy of the configuration" if of_configuration else "its off-site copy"
            self._messages.error(f"the backup was made, but not {what}: {error}")
            self._status = NOT_SENT
            self._failed += addresses
