"""The watch over the drawing thread, each time in a process of its own: it ends the process, and the last resort ends it from C."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.watch import STALLED

SCRIPT = """
import asyncio, ctypes, os, sys, threading, time
from workers.log import configure
from workers.watch import Piece, Watch

configure("info")
STALL_S = 1.0
HUNG = Piece("tick", ("job-1",), time.monotonic())
asked = 0

def piece():
    global asked
    asked += 1
    if CASE == "moves" and asked > 8:  # eight pieces, a quarter of the limit each: together twice the limit
        os._exit(0)
    return Piece("tick", (), time.monotonic()) if CASE == "moves" else None if CASE == "idle" and asked < 9 else HUNG

async def main():
    if CASE == "holds":  # a call that hangs in C and lets no other thread of Python run
        asyncio.get_running_loop().call_later(0.1, ctypes.PyDLL(None).sleep, 60)
    threading.Thread(target=threading.Event().wait).start()  # and a thread that nobody could wait for
    await Watch(piece, STALL_S).run()

asyncio.run(main())
"""


@pytest.mark.parametrize(("case", "status"), [("hangs", STALLED), ("moves", 0), ("idle", STALLED), ("holds", 1)])
def test_a_process_whose_drawing_hangs_ends_itself(case: str, status: int) -> None:
    """However busy it is, and however long it had nothing to do before."""
    done = subprocess.run([sys.executable, "-c", f"CASE = {case!r}\n{SCRIPT}"], capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done.stderr
    assert ("stalled" in done.stderr and "tick" in done.stderr and "job-1" in done.stderr) is (status == STALLED)
