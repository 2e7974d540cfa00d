"""A PostgreSQL server of one's own, where its programs are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PASSWORD = "not-to-be-told"


def programs() -> Path | None:
    """The folder of initdb and postgres, or None."""
    found = [Path(path).parent for name in ("initdb",) if (path := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "postgres").exists()), None)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start an empty server on a free port of this host, and yield the URL of a database in it."""
    folder = programs()
    assert folder is not None
    # Not below pytest's folder: that one lets nobody else in, and the server refuses to be root.
    home = Path(tempfile.mkdtemp(prefix="p2d-postgres-"))
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    secret = home / "password"
    secret.write_text(PASSWORD)
    if user:
        shutil.chown(home, "nobody")
        shutil.chown(secret, "nobody")
    port = _free_port()
    running = None
    try:
        subprocess.run(
            [
                *(folder / "initdb", "-D", home / "data", "-U", "me", "-A", "scram-sha-256", "-E", "UTF8"),
                *("--no-sync", "--no-locale", f"--pwfile={secret}"),
            ],
            check=True,
            capture_output=True,
            **user,
        )
        command = [folder / "postgres", "-D", home / "data", "-p", str(port), "-k", "", "-h", "127.0.0.1"]
        with open(home / "log", "wb") as log:
            running = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, **user)
        _wait_until_up(port, running, home / "log")
        yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        if running is not None:
            running.send_signal(signal.SIGINT)  # "fast": it does not wait for its clients
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(port: int, running: subprocess.Popen, log: Path) -> None:
    import psycopg

    address = f"host=127.0.0.1 port={port} user=me password={PASSWORD} dbname=postgres connect_timeout=2"
    for _ in range(300):
        if running.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()}")
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise RuntimeError(f"the server does not answer: {log.read_text()}")
