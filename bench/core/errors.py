"""Errors that a user can mend; the command line prints them as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReconbenchError(Exception):
    """Something the user can mend: the message says what came, what is allowed and where."""


class UnknownNameError(ReconbenchError):
    """A name that is not among the allowed ones; the message offers the nearest."""

    def __init__(self, kind: str, name: str, allowed: Iterable[str], where: str = "") -> None:
        # Exceptions are pickled by their arguments: these four bring the error back from a Ray worker as it was.
        super().__init__(kind, name, tuple(sorted(allowed)), where)

    def __str__(self) -> str:
        kind, name, names, where = self.args
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        place = f" in {where}" if where else ""
        return f"unknown {kind} {name!r}{place}.{hint} Allowed: {', '.join(names) or 'none'}."


class OptionError(ReconbenchError):
    """An option whose value does not fit its type or range."""


class CorruptFileError(ReconbenchError):
    """A file that is not what its manifest says: wrong size, wrong checksum, or unreadable."""


class MissingDataError(ReconbenchError):
    """Data that a stage needs and does not find."""


class UnreachableError(ReconbenchError):
    """A remote file that could not be read, however often it was tried."""


class OtherConfigurationError(ReconbenchError):
    """An output folder that was made with another configuration."""


class BadDataError(ReconbenchError):
    """Data whose shape or values cannot be right (an empty mask, betas of another volume, NaN where none may be)."""
