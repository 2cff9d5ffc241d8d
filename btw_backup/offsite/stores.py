"""The repositories of off-site copies that the configuration names."""

import os
from collections.abc import Callable, Sequence

from ..config import Offsite, load_general
from ..errors import Error
from ..messages import Messages
from ..programs.restic import Repository
from ..system.trust import read_trusted


def configured(config_dir: str) -> tuple[Offsite, list[Repository]]:
    """Load the settings of off-site copies. Raises Error if there are none."""
    settings = load_general(config_dir).offsite
    if settings is None:
        raise Error(
            f"OFFSITE is not set in {os.path.join(config_dir, 'config.py')}: there are no off-site copies"
        )
    return settings, repositories(settings)


def repositories(settings: Offsite, addresses: Sequence[str] | None = None) -> list[Repository]:
    """Return the configured repositories, or those at some addresses.

    Raises Error if their password file can't be trusted.
    """
    if not read_trusted(settings.password_file):
        raise Error(f"{settings.password_file}: OFFSITE_PASSWORD_FILE is missing or empty")
    return [
        Repository(address, settings.password_file, settings.env, settings.limit_upload)
        for address in (settings.addresses if addresses is None else addresses)
    ]


def each(
    repositories: Sequence[Repository], messages: Messages, act: Callable[[Repository], object]
) -> dict[Repository, Error]:
    """Have ``act`` work on each repository. Returns those where that failed, which has been reported."""
    failed = {}
    for repository in repositories:
        try:
            act(repository)
        except Error as error:
            messages.report(error)
            failed[repository] = error
    return failed
