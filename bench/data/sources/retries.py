"""Requests to a store that answers with an error or not at all: asked again after growing pauses, and not for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import tenacity

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

    def warn(state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        logger.warning("%s failed (%d of %d): %s", what, state.attempt_number, ATTEMPTS, error)

    # Half of a pause is by chance: clients that were throttled together must not come back together.
    half, longest = FIRST_PAUSE_S / 2, LONGEST_PAUSE_S / 2
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_fault),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(half, longest) + tenacity.wait_random_exponential(half, longest),
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retrying(request)
    except FileNotFoundError as error:
        raise MissingDataError(f"{what}: {error}") from None
    except (OSError, pa.ArrowException) as error:
        raise UnreachableError(f"{what} failed {ATTEMPTS} times, at last with: {error}") from None


def _is_fault(error: BaseException) -> bool:
    """Say whether the same request may be answered the next time."""
    return isinstance(error, (OSError, pa.ArrowException)) and not isinstance(error, FileNotFoundError)
