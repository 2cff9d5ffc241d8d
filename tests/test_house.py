"""The order of the house: who may import whom."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "btw_backup"
# From the roof to the ground. Those of one floor may import each other, but of the commands only run may.
COMMANDS = {
    *("fs", "fs_init", "list", "db", "fs_restore", "db_restore", "verify", "prune", "status", "sync"),
    *("ls", "find", "diff", "fetch", "check_config", "run"),
}
FLOORS = [
    {"__main__"},
    {"cli"},
    COMMANDS,
    {"arguments", "entries", "monitoring", "offsite", "patterns", "restore_test"},
    {"source"},
    {"config", "options", "hooks", "workdir"},
    {"destination"},
    {"archive"},
    {"programs"},
    {"system"},
    {"messages", "times", "errors"},
]


def imported(path: Path) -> set[str]:
    """Every word of each module or name that a file imports."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            words.update((node.module or "").split("."))
        if isinstance(node, ast.Import | ast.ImportFrom):
            words.update(word for alias in node.names for word in alias.name.split("."))
    return words


def test_no_test_module_is_imported() -> None:
    modules = {module.stem for module in TESTS.glob("test_*.py")} | {"conftest"}
    found = {str(path): imported(path) & modules for path in TESTS.rglob("*.py")}
    assert not {path: names for path, names in found.items() if names}


def siblings(path: Path) -> set[tuple[str, str]]:
    """What a module of the package imports of it: who, and whom, each as a room of a floor."""
    module = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parent = module[: -node.level]
            for alias in node.names:
                whom = (*parent, *(node.module or alias.name).split("."))[0]
                found.add((module[0], whom))
    return found - {(module[0], "__version__")}


def test_imports_point_down() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        for who, whom in siblings(path) if path.name != "__init__.py" else ():
            if floor[whom] < floor[who] or (who not in (whom, "run") and {who, whom} <= COMMANDS):
                wrong.add(f"{path.relative_to(PACKAGE)} imports {whom}")
    assert not wrong


def test_only_process_runs_programs() -> None:
    users = [path.name for path in PACKAGE.rglob("*.py") if "subprocess" in imported(path)]
    assert users == ["process.py"]


def test_directories_are_listed_in_one_place() -> None:
    """A descriptor that was opened before an entry was made need not list it."""
    listing = [path.name for path in PACKAGE.rglob("*.py") if "os.listdir(" in path.read_text()]
    assert "directories.py" in listing
    for path in PACKAGE.rglob("*.py"):
        if path.name != "directories.py":
            assert "os.listdir(fd" not in path.read_text()
