"""Named SQL statements: `-- name: statement_name` headers in a `.sql` file.

A statement's comment lines stay with it; nothing is formatted into SQL, parameters are `$n`.
"""

import re

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)
_HEADER_LIKE = re.compile(r"\s*--\s*name\s*:", re.IGNORECASE)


def named_statements(text: str) -> dict[str, str]:
    """Statements by name.

    Raises:
        ValueError: text before the first header, an empty statement, a name used twice, or a header that is not one.
    """
    for line in text.splitlines():
        # A mistyped header would otherwise become a comment of the statement above it.
        if _HEADER_LIKE.match(line) and _NAME.fullmatch(line) is None:
            raise ValueError(f"not a statement header: {line!r}")
    head, *rest = _NAME.split(text)
    if any(line.strip() and not line.startswith("--") for line in head.splitlines()):
        raise ValueError("SQL before the first '-- name:' header")
    statements: dict[str, str] = {}
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        if name in statements:
            raise ValueError(f"statement {name} is defined twice")
        if all(not line.strip() or line.lstrip().startswith("--") for line in body.splitlines()):
            raise ValueError(f"statement {name} is empty")
        statements[name] = body.strip()
    return statements
