"""The order of the house: who may import whom."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


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
