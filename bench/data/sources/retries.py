"""Requests to a store that answers with an error or not at all: asked again after growing pauses, and not for ever."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from bench.core.errors import MissingDataError, UnreachableError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ATTEMPTS = 8
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0


def patiently(request: Callable[[], Result], what: str) -> Result:
    """Return what a request gives, trying again after pauses that double.

    Args:
        request: Asks once.
        what: What it does, for messages.

    Raises:
        UnreachableError: If it fails `ATTEMPTS` times.
        MissingDataError: If there is no such file: that is an answer, not a fault.
    """
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except FileNotFoundError as error:
            raise MissingDataError(f"{what}: {error}") from None
        except (OSError, pa.ArrowException) as error:
            if attempt == ATTEMPTS:
                raise UnreachableError(f"{what} failed {ATTEMPTS} times, at last with: {error}") from None
            logger.warning("%s failed (%d of %d): %s", what, attempt, ATTEMPTS, error)
        # Clients that were throttled together must not come back together.
        time.sleep(pause * (0.5 + random.random() / 2))
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise AssertionError("unreachable")
