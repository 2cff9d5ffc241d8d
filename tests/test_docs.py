"""The documentation: what it shows is what happens, its links lead somewhere, and it leaves no option out."""

import pwd
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils import nodes

from btw_backup.cli import COMMANDS, build_parser
from btw_backup.options import DB_OPTIONS, FS_OPTIONS, GENERAL_OPTIONS

from .helpers.examples import GENERATED, PAGES, PROMPT, ROOT, Block, Sandbox, Times, blocks, missing, parsed
from .helpers.postgres_servers import INSTALLATIONS, Server

PROG = "btw-backup"
BY_HAND = [page for page in PAGES if page != GENERATED]


def name(page: Path) -> str:
    return page.stem


def examples(page: Path) -> list[Block]:
    return [*blocks(parsed(page)[0])]


class _OfPostgres(Server):
    """A server as Debian's: its superuser is named postgres."""

    superuser = "postgres"


@pytest.fixture
def sandbox(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The shell for a page, with a PostgreSQL server of its own if the page has one."""
    if reason := missing():
        pytest.skip(reason)
    tmp_path.chmod(0o755)
    if "psql" not in request.getfixturevalue("page").read_text():
        with Sandbox(tmp_path) as shell:
            yield shell
        return
    installation = INSTALLATIONS[-1]
    accounts = [account.pw_name for account in pwd.getpwall()]
    if installation.bin is None or "postgres" not in accounts:
        pytest.skip("this machine has no PostgreSQL of its own")
    server = _OfPostgres(installation)
    try:
        with Sandbox(tmp_path, server.bin, server.socket) as shell:
            yield shell
    finally:
        server.stop()


@pytest.mark.parametrize("page", BY_HAND, ids=name)
def test_what_a_page_shows_is_what_happens(page: Path, sandbox: Sandbox) -> None:
    times = Times()
    for block in examples(page):
        for command in block.commands() if block.not_run is None else ():
            status, printed = sandbox.run(times.put_into(command.text))
            if command.shown is None:
                assert status == 0, f"{command.text}\n{printed}"
            else:
                assert times.agree(command.shown, printed), f"{PROMPT}{command.text}\n{printed}"
                assert status == 0 or printed, f"{command.text}: exit status {status}"


@pytest.mark.parametrize(
    "shown, printed, agree",
    [
        ("full 2026-11-22T22:16:17: 3.1 MB, 2.4 s\n", "full 2026-12-01T00:00:00: 999 B, 0.1 s\n", True),
        (
            "full 2026-11-22T22:16:17: 3.1 MB, 2.4 s\n",
            "incremental 2026-12-01T00:00:00: 999 B, 0.1 s\n",
            False,
        ),
        ("full      1.2 kB     1d 2h\n", "full       12 B        3s\n", True),
        ("one\n", "one\ntwo\n", False),
        ("one\n...\n", "one\ntwo\n", True),
        ("3 points\n", "2 points\n", False),
        ("", "btw-backup: warning\n", False),
    ],
)
def test_all_but_times_and_sizes_must_agree(shown: str, printed: str, agree: bool) -> None:
    assert Times().agree(shown, printed) is agree


def test_a_time_in_a_command_is_that_which_was_printed() -> None:
    times = Times()
    assert times.agree(
        "2026-11-22T22:16:17\n 2026-11-22T23:16:17\n", "2026-12-01T01:00:00\n 2026-12-01T02:00:00\n"
    )
    assert times.put_into("--at 2026-11-22T22:16:17 DST") == "--at 2026-12-01T01:00:00 DST"
    assert times.put_into("--at 2026-11-22 DST") == "--at 2026-12-01T02:00:00 DST"
    assert times.put_into("touch -d 2026-11-01 FILE") == "touch -d 2026-11-01 FILE"


@pytest.mark.parametrize("page", BY_HAND, ids=name)
def test_every_example_is_run_or_says_why_not(page: Path) -> None:
    for block in examples(page):
        assert block.not_run or block.text.startswith(PROMPT), block.text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_is_what_docutils_reads_without_complaint(page: Path) -> None:
    assert parsed(page)[1] == ""


def test_links_lead_somewhere() -> None:
    documents = {page: parsed(page)[0] for page in PAGES}
    linked = {ROOT / "README.rst"}
    for page, document in documents.items():
        for node in document.findall(nodes.Element):
            path, _, anchor = (node.get("refuri") or node.get("uri") or "").partition("#")
            if not path or "://" in path:
                continue
            target = (page.parent / path).resolve()
            assert target.exists(), (page, path)
            assert not anchor or anchor in documents[target].ids, (page, path, anchor)
            linked.add(target)
    assert set(PAGES) <= linked


def test_the_reference_is_what_the_program_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools/generate.py", tmp_path], check=True, timeout=60)
    assert GENERATED.read_text() == (tmp_path / GENERATED.name).read_text(), "it is made by: make docs"


def test_every_command_and_option_is_explained() -> None:
    """Commands and options of configuration files in prose, and options of commands in their help."""
    prose = "".join(page.read_text() for page in BY_HAND)
    [action] = (action for action in build_parser(PROG)._actions if isinstance(action.choices, dict))
    assert isinstance(action.choices, dict)
    for command, parser in action.choices.items():
        assert f"{PROG} {command}" in prose or f"{PROG} -v {command}" in prose, command
        assert all(argument.help for argument in parser._actions), command
    for option in (*GENERAL_OPTIONS, *FS_OPTIONS, *DB_OPTIONS):
        assert option.name in prose, option.name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_can_be_typed(command: str) -> None:
    program = build_parser(PROG)
    [action] = (action for action in program._actions if isinstance(action.choices, dict))
    assert isinstance(action.choices, dict)
    example = shlex.split(action.choices[command].epilog.removeprefix("example: "))
    assert program.parse_args(example[1:]).command == command
