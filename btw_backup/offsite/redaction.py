"""The general configuration file without the credentials that it holds."""

import ast
from collections.abc import Mapping

_VARIABLES = "OFFSITE_ENV"
_REMARK = b"# The values of OFFSITE_ENV were left out of this copy.\n"


def redacted(text: bytes, variables: Mapping[str, str]) -> bytes | None:
    """Return a configuration file with an empty dictionary in place of these variables.

    None if the file does not spell them out: nothing tells then what else must go.
    """
    if not variables:
        return text
    value = _assigned(text)
    if value is None or ast.literal_eval(value) != variables:
        return None
    if b"\r" in text.replace(b"\r\n", b""):  # which ends a line for Python, but for nobody else
        return None
    return _replace(text, value)


def _assigned(text: bytes) -> ast.expr | None:
    """Return the literal that is assigned to the variables, None if the file says more, or less, of them."""
    try:
        tree = ast.parse(text.decode())  # whose positions are those in UTF-8
    except (UnicodeDecodeError, SyntaxError):
        return None
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == _VARIABLES]
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and node.targets == named]
    if len(assignments) != 1:
        return None
    value = assignments[0].value
    try:
        ast.literal_eval(value)
    except ValueError:
        return None
    return value


def _replace(text: bytes, value: ast.expr) -> bytes:
    lines = text.split(b"\n")
    last = value.lineno if value.end_lineno is None else value.end_lineno
    before = lines[value.lineno - 1][: value.col_offset]
    after = lines[last - 1][value.end_col_offset :]
    above = b"".join(line + b"\n" for line in lines[: value.lineno - 1])
    return above + _REMARK + b"\n".join([before + b"{}" + after, *lines[last:]])
