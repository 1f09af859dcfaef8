"""What the development network keeps between runs, in one directory (`.cocoon/`) of the checkout.

Owns the lock, the secrets, the remembered ports and `dev.json`. Knows nothing about the processes they serve.
"""

import fcntl
import hashlib
import os
import random
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from cli.private_files import PRIVATE, write_private
from cocoon.errors import CocoonError
from cocoon.ids import ADMIN_KEY_PREFIX, API_KEY_PREFIX, WORKER_KEY_PREFIX, new_secret_key

SECRET_HEX = 64


class DevError(CocoonError):
    """The development network cannot run."""

    code: ClassVar[str] = "dev_error"
    exit_code: ClassVar[int] = 1


class AlreadyRunningError(DevError):
    """Another supervisor runs in this directory."""

    code: ClassVar[str] = "already_running"


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Made once, then kept: a restart has the same keys."""

    api_key: str
    admin_key: str
    worker_key: str
    network_secret: str
    operator_key: str
    gateway_key: str
    postgres_password: str
    redis_password: str
    simulated_seed: str

    def __repr__(self) -> str:
        return "Secrets(***)"


class Ports(msgspec.Struct, frozen=True):
    """Ports that were free once; asked for again so that addresses stay the same over restarts."""

    postgres: int = 0
    redis: int = 0
    chain: int = 0
    chain_control: int = 0
    workers: dict[str, int] = {}


class DevFile(msgspec.Struct, frozen=True, kw_only=True):
    """`dev.json`: where everything is. A part that does not exist yet is null, never invented."""

    base_url: str
    api_key: str
    admin_key: str
    console_url: str | None
    models: tuple[str, ...]
    postgres_dsn: str
    redis_url: str
    liteserver_config: str | None
    chain_control_url: str | None
    pids: dict[str, int]


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock."""

    pid: int
    base_url: str


class StateDirectory:
    """The directory and its files. Every file is written whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "logs"
        self._lock = self.root / "lock"
        self._secrets = self.root / "secrets.json"
        self._ports = self.root / "ports.json"
        self._dev_file = self.root / "dev.json"
        self._environment = self.root / "env"
        self.policy = self.root / "policy.toml"
        self.manifest = self.root / "manifest.json"
        self.trust = self.root / "trust.toml"
        self._lock_fd: int | None = None

    @property
    def mark(self) -> str:
        """A name for this directory that its processes carry in their environment."""
        return hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:32]

    def open(self) -> None:
        """Create what is missing. A new root may be passed through by other users (a database under its own), not read.

        Raises:
            DevError: it cannot be written.
        """
        try:
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                self.root.chmod(0o711)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DevError(
                f"cannot use the state directory {self.root}: {error.strerror} (COCOON_STATE_DIR)"
            ) from error

    def lock(self, base_url: str) -> None:
        """Take the lock until this process ends, however it ends.

        Raises:
            AlreadyRunningError: another process holds it.
        """
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, PRIVATE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise AlreadyRunningError(_already_running(self.root, holder)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(Holder(os.getpid(), base_url)), 0)
        self._lock_fd = descriptor

    def unlock(self) -> None:
        """Give the lock back; the file stays, since removing it would race with the next holder."""
        if self._lock_fd is not None:
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def secrets(self, rng: random.Random) -> Secrets:
        """The kept secrets; what an older version did not have yet is made now.

        Raises:
            DevError: the file is damaged.
        """
        kept = self._read_object(self._secrets)
        merged = msgspec.to_builtins(new_secrets(rng)) | kept
        try:
            secrets = msgspec.convert(merged, Secrets)
        except msgspec.ValidationError as error:
            raise DevError(f"{self._secrets} is damaged ({error}); move {self.root} away to start afresh") from error
        if merged != kept:
            write_private(self._secrets, msgspec.json.encode(secrets))
        return secrets

    def ports(self) -> Ports:
        """The remembered ports; none after damage, since they are only a wish."""
        try:
            return msgspec.convert(self._read_object(self._ports), Ports)
        except (DevError, msgspec.ValidationError):
            return Ports()

    def keep_ports(self, ports: Ports) -> None:
        """Remember ports for the next run."""
        write_private(self._ports, msgspec.json.encode(ports))

    def write_dev_file(self, content: DevFile) -> None:
        """Write `dev.json`, readable by its owner alone: it holds keys."""
        write_private(self._dev_file, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")

    def write_environment(self, variables: Mapping[str, str]) -> None:
        """Write `env`, which a shell reads to run the operator's commands against this network; it holds a password."""
        lines = (f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
        write_private(self._environment, "".join(lines).encode())

    def write_policy(self, text: bytes) -> None:
        """Write the policy that the gateway judges workers by."""
        write_private(self.policy, text)

    def write_manifest(self, raw: bytes) -> None:
        """Write the manifest of the weights that the workers serve."""
        write_private(self.manifest, raw)

    def write_trust(self, text: bytes) -> None:
        """Write what verifying clients of this network trust (docs/client.md)."""
        write_private(self.trust, text)

    def remove_dev_file(self) -> None:
        """Nothing is ready (any more)."""
        self._dev_file.unlink(missing_ok=True)

    def rotate_log(self, name: str) -> Path:
        """The path of a process's log; what the last run wrote is kept one run long under `NAME.log.1`."""
        path = self.logs / f"{name}.log"
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        return path

    def _read_object(self, path: Path) -> dict[str, Any]:
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            return {}
        except PermissionError as error:
            raise DevError(f"{path} belongs to another user; run as that user or move {self.root} away") from error
        except msgspec.DecodeError as error:
            raise DevError(f"{path} is damaged; move {self.root} away to start afresh") from error


def new_secrets(rng: random.Random) -> Secrets:
    """Fresh secrets of 256 bits each."""
    return Secrets(
        api_key=new_secret_key(API_KEY_PREFIX, rng),
        admin_key=new_secret_key(ADMIN_KEY_PREFIX, rng),
        worker_key=new_secret_key(WORKER_KEY_PREFIX, rng),
        network_secret=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
        operator_key=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
        gateway_key=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
        postgres_password=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
        redis_password=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
        simulated_seed=f"{rng.getrandbits(SECRET_HEX * 4):0{SECRET_HEX}x}",
    )


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, 4096, 0), type=Holder)
    except msgspec.DecodeError:
        return None


def _already_running(root: Path, holder: Holder | None) -> str:
    if holder is None:
        return f"another supervisor is starting or stopping in {root}"
    return (
        f"Cocoon already runs here: {holder.base_url} (pid {holder.pid}, state in {root}). "
        f"Stop it first (Ctrl-C there, or kill {holder.pid}), or set COCOON_STATE_DIR and COCOON_PORT for a second one."
    )
