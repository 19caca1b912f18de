"""Checks that pictures made elsewhere and the true images belong together."""

from __future__ import annotations

from collections.abc import Sequence

from bench.core.errors import BadDataError
from bench.scoring.outside.files import Pictures


def check_known(ids: Sequence[int], test: Sequence[int], where: object, place: str) -> None:
    """Check that all ids are test images.

    Raises:
        BadDataError: If not; names the place of the pictures and the first unknown ids.
    """
    if unknown := sorted(set(ids) - set(test)):
        raise BadDataError(
            f"{place}: {len(unknown)} of {len(ids)} stimuli are no test images of {where}: {unknown[:5]}; "
            "numbers count from 0"
        )


def check_upright(pictures: Pictures, size: tuple[int, ...], place: str) -> None:
    """Check that height and width are not exchanged: any other size is allowed, for protocols resize.

    Raises:
        BadDataError: If pictures are as high as the true images `size` are wide, and the other way round.
    """
    height, width = size
    shown = pictures.values.shape[-2:]
    if height != width and shown == (width, height):
        sizes = f"pictures are {shown[0]} x {shown[1]} (height x width), true images {height} x {width}"
        raise BadDataError(f"{place}: {sizes}: height and width look exchanged")
