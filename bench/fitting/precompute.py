"""The cache of `Encoder.precompute`: one factorisation for all trials of a sweep on the same subjects."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from bench.core.identity import digest
from bench.core.storage import Folder
from bench.fitting.plan import FitPlan
from bench.fitting.subject_stream import SubjectStream
from encoders.base import Encoder, Head


def cache_key(encoder: Encoder, plan: FitPlan) -> str:
    """Return the address of what `precompute` returns: its inputs and the options it names, nothing else."""
    named = {name: plan.options[name] for name in encoder.precompute_options}
    # Of heads only the voxels: targets may not enter, so fits of other targets share the arrays.
    rois = {name: spec.roi for name, spec in plan.heads.items()}
    pairs = plan.seed if plan.control == "shuffled" else None
    inputs = [plan.subjects, plan.shards, plan.sessions, plan.split, plan.normalise, plan.averaging, rois, pairs]
    return digest({"precompute": 1, "encoder": plan.encoder, "options": named, "inputs": inputs})


def precomputed(
    encoder: Encoder, plan: FitPlan, data: Mapping[int, SubjectStream], heads: Sequence[Head], runs: Folder
) -> Mapping[str, np.ndarray]:
    """Return what the encoder precomputes, from the cache where it is there.

    Trials that miss at once on one machine wait for the first, so that a sweep computes once. On two machines both may
    compute; the file appears whole, so the second write changes nothing.
    """
    if type(encoder).precompute is Encoder.precompute:
        return {}
    folder, key = runs / "precompute", cache_key(encoder, plan)
    if not folder.exists(f"{key}.npz"):
        # One process of this machine and user at a time; the system frees the lock of one that is killed.
        lock = Path(tempfile.gettempdir()) / f"reconbench-{os.getuid()}-{key}.lock"
        with FileLock(lock):
            try:
                # Asked again under the lock: whoever held it before may just have written the file.
                if not folder.exists(f"{key}.npz"):
                    return _computed(encoder, data, heads, folder, f"{key}.npz")
            finally:
                # The arrays are there: it does not matter that those who wait and those who come lock two files now.
                lock.unlink(missing_ok=True)
    # Never unpickled: the folder may be shared with others.
    with np.load(io.BytesIO(folder.read_bytes(f"{key}.npz")), allow_pickle=False) as arrays:
        return dict(arrays)


def _computed(
    encoder: Encoder, data: Mapping[int, SubjectStream], heads: Sequence[Head], folder: Folder, name: str
) -> Mapping[str, np.ndarray]:
    """Compute, write the file and return its arrays."""
    arrays = dict(encoder.precompute(data, heads))
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **arrays)
    folder.write_bytes(name, sink.getvalue())
    return arrays
