"""What every encoder asks of its inputs before it computes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from encoders._shared.moments import require_finite
from encoders.base import Head, Runtime, SubjectData

T = TypeVar("T")


def check_fit(data: Mapping[int, SubjectData], heads: Sequence[Head]) -> None:
    """Refuse data that no supervised encoder can learn from.

    Args:
        data: The subjects of a fit.
        heads: Its heads.

    Raises:
        ValueError: If there is no subject, no head, a name given twice, a subject without training trials, or a head
            with empty or foreign columns.
    """
    if not data:
        raise ValueError("no subjects: a fit needs at least one")
    if not heads:
        raise ValueError("no heads: this encoder learns targets and needs at least one head")
    # Predictions are keyed by name: of two heads of one name the second would replace the first.
    names = [head.name for head in heads]
    if len(set(names)) != len(names):
        raise ValueError(f"heads {names}: every name must be given once")
    for subject, trials in data.items():
        if trials.n_trials("train") == 0:
            raise ValueError(f"subject {subject} has no training trials; at least one is needed")
        for head in heads:
            _check_columns(head, subject, trials.n_voxels)


def _check_columns(head: Head, subject: int, n_voxels: int) -> None:
    """Raise unless the head has at least one of the subject's voxels and only such."""
    if head.size == 0:
        raise ValueError(f"head {head.name!r} has shape {head.shape}: every axis must be at least 1")
    if head.columns is None:
        if n_voxels == 0:
            raise ValueError(f"subject {subject} has no voxels; head {head.name!r} needs at least one")
        return
    if subject not in head.columns:
        raise ValueError(f"head {head.name!r} names columns of subjects {sorted(head.columns)}, not of {subject}")
    columns = head.columns[subject]
    if columns.size == 0:
        raise ValueError(f"head {head.name!r} has no voxels in subject {subject}: its ROI is empty there")
    # Negative columns would index from the end and give voxels that no ROI named.
    if columns.min() < 0 or columns.max() >= n_voxels:
        raise ValueError(
            f"head {head.name!r} names columns {columns.min()} to {columns.max()} of subject {subject}, which has "
            f"columns 0 to {n_voxels - 1}"
        )


def check_voxels(voxels: torch.Tensor, subject: int, n_voxels: Mapping[int, int]) -> None:
    """Refuse voxels that do not belong to the fit.

    Args:
        voxels: `(N, V)` what `predict` was given.
        subject: Whose voxels they are said to be.
        n_voxels: V of each fitted subject.

    Raises:
        ValueError: If the subject was not fitted, V differs, or a value is not finite.
    """
    if subject not in n_voxels:
        raise ValueError(f"subject {subject} was not fitted; fitted subjects: {sorted(n_voxels)}")
    if voxels.ndim != 2 or voxels.shape[1] != n_voxels[subject]:
        raise ValueError(
            f"voxels of shape {tuple(voxels.shape)}; subject {subject} was fitted with (trials, {n_voxels[subject]})"
        )
    require_finite(voxels, f"voxels of subject {subject}")


def check_alone(name: str, runtime: Runtime) -> None:
    """Refuse a runtime that an encoder without data-parallel workers or earlier stages cannot use.

    Args:
        name: The encoder's name in recipes.
        runtime: What bench lends.

    Raises:
        ValueError: If several workers share the fit or it shall start from another stage.
    """
    # Refused, not ignored: each worker would fit its own share of the trials, and all but one result be lost.
    if runtime.world_size != 1:
        raise ValueError(f"{name} is fitted by one worker, not by {runtime.world_size}")
    if runtime.initial is not None:
        raise ValueError(f"{name} has nothing to continue from: remove init_from ({runtime.initial})")


def require_fitted(state: T | None, encoder: str) -> T:
    """Return the state of an encoder.

    Args:
        state: What a fit or a directory gave, None before either.
        encoder: The encoder's name in recipes.

    Raises:
        ValueError: If there is none.
    """
    if state is None:
        raise ValueError(f"this {encoder} was not fitted; fit or load it first")
    return state


def check_positive(options: Any, names: Sequence[str]) -> None:  # noqa: ANN401 - any options dataclass
    """Refuse options that must be greater than zero and are not.

    Args:
        options: A dataclass of options.
        names: Its fields to check; see `check_numbers`.

    Raises:
        ValueError: Naming the field and its value.
    """
    check_numbers(options, names, lambda number: number > 0, "greater than 0")


def check_numbers(
    options: Any,  # noqa: ANN401 - any options dataclass
    names: Sequence[str],
    holds: Callable[[float], bool],
    rule: str,
) -> None:
    """Refuse options outside their range.

    Args:
        options: A dataclass of options.
        names: Its fields to check; of a tuple or mapping every number is, and there must be one.
        holds: Whether a number is allowed. NaN must not be, so compare with what is allowed.
        rule: The same in words, after "must be".

    Raises:
        ValueError: Naming the field and its value.
    """
    for name in names:
        value = getattr(options, name)
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else (value,)
        # An empty list leaves nothing to try: no layer, no alpha.
        if not parts or not all(holds(part) for part in parts):
            raise ValueError(f"option {name} is {value!r}; it must be {rule if parts else 'at least one number'}")


def check_words(options: Any) -> None:  # noqa: ANN401 - any options dataclass
    """Refuse options of a `Literal` type that are none of its words.

    Args:
        options: A dataclass of options.

    Raises:
        ValueError: Naming the field, its value, the nearest word and all of them.
    """
    for name, kind in get_type_hints(type(options)).items():
        value, allowed = getattr(options, name), get_args(kind)
        if get_origin(kind) is not Literal or value in allowed:
            continue
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"option {name} is {value!r}; {hint}allowed: {', '.join(allowed)}")
