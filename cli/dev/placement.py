"""Where a server that refuses to run as root can live, and under which account.

PostgreSQL does not run as root. So as root it gets another account, which must be able to reach its data and its
program through every parent directory. Permissions outside our own directories are never changed: where the
account cannot pass (a checkout under /root), data and a copy of the program move to a directory that it can reach.
"""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec

from cli.dev.state import DevError
from cli.process import Account

OUTSIDE = Path("/var/tmp")  # noqa: S108  survives a reboot, and our own directory in it is checked for its owner
_NOBODY = 65534
_PASS_THROUGH = 0o711
_PROBE_SECONDS = 10.0
_COPIED = "program.json"


class Placement(msgspec.Struct, frozen=True):
    """`base` holds everything, `account` None means the current user."""

    base: Path
    account: Account | None


def choose_placement(directory: Path, data_name: str, outside: Path = OUTSIDE) -> Placement:
    """Where the server of `directory` lives: there, or where its account can reach it. Creates the place.

    Existing data keeps its place and its owner.

    Raises:
        DevError: the data belongs to another user, or no reachable place exists.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        _require_own(directory / data_name)
        return Placement(directory, None)
    account = _owner(directory / data_name) or unprivileged_account()
    directory.chmod(_PASS_THROUGH)
    if can_enter(account, directory):
        return Placement(directory, account)
    if (directory / data_name).exists():
        raise DevError(f"uid {account.uid}, which owns {directory / data_name}, cannot enter {directory} any more")
    elsewhere = _outside_base(directory, outside)
    _create_outside(elsewhere)
    account = _owner(elsewhere / data_name) or account
    if not can_enter(account, elsewhere):
        raise DevError(
            f"PostgreSQL does not run as root; uid {account.uid} can enter neither {directory} nor {elsewhere}"
        )
    return Placement(elsewhere, account)


def unprivileged_account() -> Account:
    """`nobody`, by name or by its customary number."""
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(_NOBODY, _NOBODY)
    return Account(entry.pw_uid, entry.pw_gid)


def can_enter(account: Account, directory: Path) -> bool:
    """Whether the account can pass every parent. Asked of the kernel, which also knows ACLs and mounts."""
    return _succeeds(account, "/bin/sh", "-c", 'cd "$1"', "sh", str(directory))


def reachable_program(placement: Placement, package: Path, program: str) -> Path:
    """The path of `program` (relative to `package`) that the account can run: installed, or a copy under the base.

    The copy takes the neighbouring `PACKAGE.libs` along: the binaries find their libraries by relative paths.

    Raises:
        DevError: not even the copy runs.
    """
    installed = package / program
    if placement.account is None or _succeeds(placement.account, str(installed), "--version"):
        return installed
    copies = placement.base / "program"
    source = f"{installed}:{installed.stat().st_mtime_ns}:{installed.stat().st_size}".encode()
    stamp = copies / _COPIED
    if not stamp.exists() or stamp.read_bytes() != source:
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir(mode=0o755)
        copies.chmod(0o755)
        top = Path(program).parts[0]
        shutil.copytree(package / top, copies / package.name / top, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copies / libraries.name, symlinks=True)
        stamp.write_bytes(source)
    copied = copies / package.name / program
    if not _succeeds(placement.account, str(copied), "--version"):
        raise DevError(f"uid {placement.account.uid} can run neither {installed} nor its copy {copied}")
    return copied


def remove_placement(directory: Path, outside: Path = OUTSIDE) -> None:
    """Delete all data of `directory`, wherever it was placed."""
    elsewhere = _outside_base(directory, outside)
    if _is_our_base(elsewhere):
        shutil.rmtree(elsewhere)
    if directory.exists():
        shutil.rmtree(directory)


def _outside_base(directory: Path, outside: Path) -> Path:
    name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
    return outside / f"cocoon-{name}"


def _create_outside(base: Path) -> None:
    """Make the directory, or accept one that can only be ours: the parent is writable by everyone."""
    try:
        base.mkdir(mode=_PASS_THROUGH)
        base.chmod(_PASS_THROUGH)
    except FileExistsError:
        if not _is_our_base(base):
            raise DevError(f"{base} exists and is not ours; remove it") from None


def _owner(data: Path) -> Account | None:
    try:
        info = data.stat()
    except FileNotFoundError:
        return None
    return Account(info.st_uid, info.st_gid) if info.st_uid else None


def _is_our_base(base: Path) -> bool:
    try:
        info = base.lstat()
    except OSError:
        return False
    writable_by_others = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not writable_by_others


def _require_own(data: Path) -> None:
    if data.exists() and data.stat().st_uid != os.geteuid():
        raise DevError(f"{data} belongs to another user (uid {data.stat().st_uid}); run as that user or remove it")


def _succeeds(account: Account, *argv: str) -> bool:
    try:
        done = subprocess.run(
            argv,
            check=False,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
