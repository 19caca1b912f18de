"""Finding and ending the processes that one command started, and no others.

`ray stop` ends every Ray on the machine, also those of other people and projects. Here a cluster's processes carry a
random mark in their environment; those below them in the process tree belong to it too, because Ray's Python workers
rename themselves and thereby overwrite the environment that `/proc` shows.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
_POLL_S = 0.1
_KILL_S = 5.0

Process = tuple[int, int]
"""A process id with its start time in clock ticks since boot: ids are used again, the pair is not."""


def own(variable: str, value: str) -> set[Process]:
    """Return the living processes marked by an environment variable, and all their descendants.

    This process and its ancestors never belong, so that a marked shell can end its own cluster.

    Args:
        variable: Name of the environment variable that marks them.
        value: Its value.

    Raises:
        FileNotFoundError: On systems without `/proc`.
    """
    if not PROC.is_dir():
        raise FileNotFoundError("cannot list processes: this system has no /proc (Linux is needed)")
    table = {pid: stat for pid in _pids() if (stat := _stat(pid))}
    mark = f"{variable}={value}".encode()
    found = {pid for pid in table if mark in _environment(pid)}
    fresh = found
    while fresh:
        fresh = {pid for pid, (parent, _) in table.items() if parent in fresh} - found
        found |= fresh
    return {(pid, table[pid][1]) for pid in found - set(_ancestry(os.getpid(), table))}


def end(variable: str, value: str, grace_s: float = 3.0) -> int:
    """End the processes of `own`: ask, wait, then kill; return how many there were.

    Ray's control store and raylet wait for each other when asked at once, so the wait is short: what the harness
    writes is written aside and renamed, and being killed leaves nothing half-written under its name.

    Args:
        variable: Name of the environment variable that marks them.
        value: Its value.
        grace_s: Seconds between asking (SIGTERM) and killing (SIGKILL).

    Raises:
        TimeoutError: If some are still there seconds after being killed.
    """
    seen: set[Process] = set()
    asked = _signal_until_gone(variable, value, seen, signal.SIGTERM, grace_s)
    if not asked and not _signal_until_gone(variable, value, seen, signal.SIGKILL, _KILL_S):
        left = sorted(pid for pid, _ in alive(seen))
        raise TimeoutError(f"processes {left} are still there {_KILL_S:.0f} s after SIGKILL")
    return len(seen)


def _signal_until_gone(variable: str, value: str, seen: set[Process], number: int, limit_s: float) -> bool:
    """Send each own process one signal when first seen, adding it to `seen`; say whether all ended within the limit."""
    sent: set[Process] = set()
    deadline = time.monotonic() + limit_s
    while True:
        # A child whose parent has ended is found through `seen` only: its parent is now process 1.
        seen |= own(variable, value)
        living = alive(seen)
        if not living:
            return True
        if time.monotonic() > deadline:
            return False
        for process in living - sent:
            _send(process[0], number)
        sent |= living
        time.sleep(_POLL_S)


def alive(processes: Iterable[Process]) -> set[Process]:
    """Return those of the processes that still run."""
    return {(pid, start) for pid, start in processes if (stat := _stat(pid)) and stat[1] == start}


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended by now."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _pids() -> list[int]:
    """Return the ids of all processes."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> tuple[int, int] | None:
    """Return a process's parent and start time in ticks; None when it has ended (a zombie has)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the command's name, the second field, stands in brackets and may hold anything, brackets too.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def _environment(pid: int) -> list[bytes]:
    """Return a process's environment as `NAME=value` items; none of other users' or ended processes."""
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _ancestry(pid: int, table: dict[int, tuple[int, int]]) -> list[int]:
    """Return a process and its ancestors, nearest first."""
    line = []
    while pid in table:
        line.append(pid)
        pid = table[pid][0]
    return line
