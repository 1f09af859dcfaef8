"""Runs a command that the kernel kills when the agent dies, however the agent dies.

`python -m workers.agent.engines.tether PARENT_PID COMMAND...`: asks for SIGKILL on the parent's death, checks that
the parent has not died already, and becomes the command. The request survives `execve`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether(parent_pid: int) -> None:
    """Die with the parent.

    Raises:
        SystemExit: the parent is gone already, or the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit("the engine cannot be tethered to the agent")
    if os.getppid() != parent_pid:
        sys.exit("the agent is gone")


def main() -> None:
    """Tether and execute."""
    tether(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  the agent's own command line


if __name__ == "__main__":
    main()
