"""Named steps between prediction and rendering; each declares whether it uses statistics of the test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bench.core.errors import UnknownNameError

Apply = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PostStep:
    """A step.

    Attributes:
        version: Raised when the step's output changes: part of the predictions' identity.
        uses_test_statistics: Whether one prediction depends on the other test predictions. Such a row is open.
        apply: `apply(predictions, train_targets)`, both `(N, D)` and `(M, D)` float32, gives `(N, D)`.
    """

    version: int
    uses_test_statistics: bool
    apply: Apply


def restandardise(predictions: np.ndarray, train_targets: np.ndarray) -> np.ndarray:
    """Give each target of the predictions the mean and spread it has over the training targets.

    Standardises by the test predictions' own statistics, as Brain-Diffuser's regression scripts do (Ozcelik &
    VanRullen 2023), so a single new scan cannot be decoded the same way. A target that is predicted constant stays at
    the training mean.
    """
    spread = predictions.std(axis=0)
    z = np.divide(predictions - predictions.mean(axis=0), spread, out=np.zeros_like(predictions), where=spread > 0)
    return z * train_targets.std(axis=0) + train_targets.mean(axis=0)


STEPS: Mapping[str, PostStep] = {
    "restandardise": PostStep(version=1, uses_test_statistics=True, apply=restandardise),
}


def step(name: str) -> PostStep:
    """Return the step of a name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in STEPS:
        raise UnknownNameError("post step", name, STEPS)
    return STEPS[name]
