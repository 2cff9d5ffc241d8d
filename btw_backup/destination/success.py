"""What follows when a run has succeeded. The backup counts, so that none of it can make the run fail."""

from datetime import datetime

from ..errors import Error
from . import binding, explanation
from .retention import Policy
from .writer import LockedDestination


def conclude(destination: LockedDestination, at: datetime, source: str | None, keep: Policy | None) -> None:
    """Remember the run of that time, and the source, None if it is not known; remove what does not stay.

    ``keep`` says what stays, None is everything.
    """
    destination.note_success(at)
    binding.bind(destination, source)
    if keep is not None:
        try:
            destination.prune(keep)
        except Error as error:
            destination.warn(f"KEEP could not be applied: {error}")
        destination.rescan()
    explanation.explain(destination)
