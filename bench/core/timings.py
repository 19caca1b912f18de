"""How long each stage took, kept beside the results so that the board's costs and the demo's log can name it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bench.core.storage import Folder

FILE = "stages.json"


class Timings:
    """Wall seconds by stage, written after every stage; a resumed run adds to what was spent before.

    Args:
        runs: The runs folder.
    """

    def __init__(self, runs: Folder) -> None:
        self._runs = runs
        self.seconds: dict[str, float] = dict(runs.read_json(FILE)) if runs.exists(FILE) else {}
        self.here: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside as the stage's."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.here[name] = self.here.get(name, 0.0) + spent
            self._runs.write_json(FILE, self.seconds)
