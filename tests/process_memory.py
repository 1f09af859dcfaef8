"""Everything that a process has in memory, and those that it started: for proofs that something is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 8 * 1024 * 1024
_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r...) \S+ \S+ \S+ *(.*)")


def family_of(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family_of(int(child))
    return found


def holds(pid: int, needle: bytes) -> bool:
    """Whether any readable octets of the process contain `needle`; at least a megabyte is searched, or this fails."""
    searched = 0
    found = False
    for chunk in _chunks(pid, len(needle)):
        searched += len(chunk)
        found = found or needle in chunk
    assert searched > 1024 * 1024, "the memory could not be read"
    return found


def _chunks(pid: int, overlap: int) -> Iterator[bytes]:
    regions = [match for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if (match := _MAP.match(line))]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for region in regions:
            at, end = int(region[1], 16), int(region[2], 16)
            if region[4] in {"[vvar]", "[vsyscall]", "[vvar_vclock]"}:
                continue
            while at < end:
                try:
                    memory.seek(at)
                    chunk = memory.read(min(_CHUNK_BYTES, end - at))
                except OSError:
                    # Unmapped meanwhile, or pages behind which there is nothing (a guard, the end of a file).
                    break
                if not chunk:
                    break
                yield chunk
                at += max(len(chunk) - overlap, overlap) if at + len(chunk) < end else len(chunk)
