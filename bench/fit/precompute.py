"""The cache of `Encoder.precompute`: one factorisation for all trials of a sweep on the same subjects."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from bench.fit.plan import FitPlan
from bench.fit.subject_stream import SubjectStream
from bench.identity import digest
from bench.storage import Folder
from encoders.base import Encoder, Head


def cache_key(encoder: Encoder, plan: FitPlan) -> str:
    """Return the address of what `precompute` returns: its inputs and the options it names, nothing else."""
    named = {name: plan.options[name] for name in encoder.precompute_options}
    rois = {name: spec["roi"] for name, spec in plan.heads.items()}
    pairs = plan.seed if plan.control == "shuffled" else None
    inputs = [plan.subjects, plan.shards, plan.sessions, plan.split, plan.normalise, rois, pairs]
    return digest({"precompute": 1, "encoder": plan.encoder, "options": named, "inputs": inputs})


def precomputed(
    encoder: Encoder, plan: FitPlan, data: Mapping[int, SubjectStream], heads: Sequence[Head], runs: Folder
) -> Mapping[str, np.ndarray]:
    """Return what the encoder precomputes, from the cache where it is there.

    Two trials that miss at once both compute; the file appears whole, so the second write changes nothing.
    """
    if type(encoder).precompute is Encoder.precompute:
        return {}
    folder, name = runs / "precompute", f"{cache_key(encoder, plan)}.npz"
    if folder.exists(name):
        with np.load(io.BytesIO(folder.read_bytes(name)), allow_pickle=False) as arrays:
            return dict(arrays)
    arrays = dict(encoder.precompute(data, heads))
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    folder.write_bytes(name, sink.getvalue())
    return arrays
