"""ASHA within groups: a fit competes with other configurations of the same recipe, stage and subject only.

Subjects differ in noise; one ASHA over all of them would stop every fit of the noisiest subject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler


class GroupedScheduler(TrialScheduler):
    """Hands every trial to the scheduler of its group.

    Args:
        group_of: Group of a trial, from its configuration.
        make: Makes the scheduler of a group.
    """

    def __init__(self, group_of: Callable[[dict[str, Any]], str], make: Callable[[str], TrialScheduler]) -> None:
        self._group_of = group_of
        self._make = make
        self._groups: dict[str, TrialScheduler] = {}
        self._objective: tuple[str | None, str | None] = (None, None)

    def _of(self, trial: Trial) -> TrialScheduler:
        """Return the scheduler of a trial's group, made at its first trial."""
        group = self._group_of(trial.config)
        if group not in self._groups:
            self._groups[group] = self._make(group)
            # Tune sets these once on the scheduler it knows, which is before any group is made.
            self._groups[group].set_search_properties(*self._objective)
        return self._groups[group]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: object) -> bool:
        """Remember metric and mode for the groups to come."""
        self._objective = (metric, mode)
        return bool(super().set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: object, trial: Trial) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """Return the group's decision."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: object, trial: Trial) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:  # noqa: ANN401 - Tune's own controller
        """Return the next trial in the order they were added."""
        # No group may choose: each sees only its own trials, and one would starve the others.
        return FIFOScheduler().choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """Return how many groups there are."""
        return f"GroupedScheduler over {len(self._groups)} groups"
