"""A PostgreSQL server of the tests' own: on a free port of this machine, in a folder that goes
away, run by an account without rights. Also what the benchmarks start."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

PLACES = ("/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/17/bin")
_ACCOUNTS = ("postgres", "nobody")
_START_S = 60


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, None if PostgreSQL is not installed."""
    found = shutil.which("postgres")
    folders = [*PLACES, *([str(Path(found).parent)] if found else [])]
    return next((Path(f) for f in folders if (Path(f) / "initdb").exists()), None)


class Server:
    """`url` leads to its database `postgres`; it trusts whoever comes over loopback."""

    def __init__(self, folder: Path, durable: bool) -> None:
        tools = binaries()
        assert tools is not None, "PostgreSQL is not installed"
        self._tools, self.folder, self._durable = tools, folder, durable
        self._as = self._account()
        if self._as:
            os.chown(folder, self._as["user"], self._as["group"])
        self._run(
            "initdb", "-D", str(folder / "data"), "-U", "flywheel", "-A", "trust", "-E", "UTF8",
            "--no-sync", "--locale=C.UTF-8",
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://flywheel@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def start(self) -> None:
        safe = "on" if self._durable else "off"
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": safe,
            "full_page_writes": safe,
            "synchronous_commit": safe,
            "max_connections": 200,
            "shared_buffers": "128MB",
        }
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._tools / "postgres", "-D", self.folder / "data", *flags],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                **self._as,
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                log_text = (self.folder / "log").read_text()
                assert self.process.poll() is None, f"postgres ended:\n{log_text[-2000:]}"
                assert time.monotonic() < deadline, f"postgres did not start:\n{log_text[-2000:]}"
                time.sleep(0.05)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT is its fast shutdown; SIGQUIT and SIGKILL leave it to recover."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def _account(self) -> dict[str, object]:
        """PostgreSQL refuses to be run by root."""
        if os.getuid() != 0:
            return {}
        for name in _ACCOUNTS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        raise AssertionError("root, and no account without rights to run PostgreSQL")

    def _run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._tools / tool, *arguments], capture_output=True, cwd="/", check=False, **self._as
        )
        assert done.returncode == 0, done.stderr.decode()


@contextlib.contextmanager
def server(durable: bool = False) -> Iterator[Server]:
    """A running server, ended and deleted afterwards; `durable`: it syncs as it should."""
    folder = Path(tempfile.mkdtemp(prefix="flywheel-postgres-"))
    found = None
    try:
        found = Server(folder, durable)
        yield found
    finally:
        if found is not None:
            found.stop()
        shutil.rmtree(folder, ignore_errors=True)
