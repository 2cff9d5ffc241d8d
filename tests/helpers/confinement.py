"""Switches off one of the two walls between a hostile destination and root, to test the other alone.

The program itself has no such switch: a bwrap that does not work comes first in PATH, and checks are
replaced, see ``running.replacing``.
"""

import os
from pathlib import Path

import pytest

from btw_backup.programs import process

from .running import break_bubblewrap

confined = pytest.mark.skipif(
    os.geteuid() != 0 or process.unconfined() is not None, reason="programs cannot be confined here"
)


def without_confinement(where: Path) -> dict[str, str]:
    """An environment in which bwrap fails, so that programs run unconfined. ``where``: a new directory."""
    where.mkdir()
    break_bubblewrap(where)
    return {"PATH": f"{where}:{os.environ['PATH']}"}
