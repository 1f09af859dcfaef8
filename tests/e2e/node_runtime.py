"""Node.js for clients that are not Python: the one on PATH, else the one that `make install` put beside our Python."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION_MIN = 20
INSTALL_S_MAX = 300


class Node:
    """A `node` with its `npm`, both found in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(
        self, *command: str, cwd: Path, timeout_s: float, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._folder / command[0], *command[1:]],
            cwd=cwd, timeout=timeout_s, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{self._folder}{os.pathsep}{os.environ['PATH']}", **(environment or {})},
        )  # fmt: skip

    def install(self, project: Path) -> None:
        """What the project's lock names, from the registry that this machine uses; once per lock."""
        lock = hashlib.sha256((project / "package-lock.json").read_bytes()).hexdigest()
        stamp = project / "node_modules" / ".installed"
        if stamp.exists() and stamp.read_text() == lock:
            return
        done = self.run(
            "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=project, timeout_s=INSTALL_S_MAX
        )
        assert done.returncode == 0, done.stdout
        stamp.write_text(lock)


def find_node() -> Node:
    """The first Node.js of version 20 or newer that has npm."""
    found = shutil.which("node")
    folders = [Path(found).parent] if found is not None else []
    for folder in [*folders, Path(sys.prefix) / "bin"]:
        if _version(folder / "node") >= VERSION_MIN and (folder / "npm").exists():
            return Node(folder)
    raise AssertionError(f"no Node.js {VERSION_MIN} or newer with npm on PATH or in {sys.prefix}: run `make install`")


def _version(program: Path) -> int:
    if not program.exists():
        return 0
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=30)
    return int(done.stdout.strip().removeprefix("v").split(".")[0]) if done.returncode == 0 else 0
