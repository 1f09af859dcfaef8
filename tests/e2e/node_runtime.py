"""Node.js for tests of what is not Python: `cli.node` finds it, this runs it."""

import os
import subprocess
from pathlib import Path

from cli import node as runtime


class Node:
    """A Node.js with npm."""

    def __init__(self, found: runtime.Node) -> None:
        self._found = found

    def node(
        self, *arguments: str, cwd: Path, timeout_s: float, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self._found.program.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self._found.program, *arguments], cwd=cwd, timeout=timeout_s, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, **environment},
        )  # fmt: skip

    def install(self, project: Path) -> None:
        self._found.install(project)


def find_node() -> Node:
    return Node(runtime.find_node())
