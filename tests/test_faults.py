"""A sample of what ``python -m tests.faults`` tries in full."""

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .faults.scenes import SCENES, DbScene, Scene
from .faults.trying import attempt, faults_of, heed_signals, prepared
from .helpers.postgres_servers import INSTALLATIONS, Server

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Each operation, prepared."""
    heed_signals()
    with ExitStack() as stack:
        scene, server = SCENES[request.param](), None
        if isinstance(scene, DbScene):
            server = Server(INSTALLATIONS[0])
            stack.callback(server.stop)
        yield stack.enter_context(prepared(scene, tmp_path, server))


def test_no_fault_costs_a_point(scene: Scene) -> None:
    tried = 0
    wrong = []
    for fault in faults_of(scene, random.Random(scene.name), quick=True):
        found = attempt(scene, fault)
        tried += found is not None
        wrong += [f"{fault}: {text}" for text in found or ()]
    assert not wrong, "\n".join(wrong)
    assert tried >= 3, "too few of the faults had an effect"
