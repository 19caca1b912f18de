"""Factorisation of one subject's training voxels: everything of a ridge regression that no target and no alpha enters.

With centred voxels `X` (n, V), ridge predicts `x X' (X X' + a)^-1 Y = x (X'X + a)^-1 X' Y`. One symmetric
eigendecomposition serves every alpha and target: of `X'X = E S E'` (primal, where V <= n) or of `X X' = U S U'` (dual).
Both give a `basis` B (V, r) with

    prediction = x B  diag(1 / (s + a))  C,        B = E, C = E' X' Y   (primal)    B = X' U, C = U' Y   (dual)

which never divides by a small eigenvalue.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from encoders.ridge.rows import TrainingRows

Form = Literal["primal", "dual"]
FORMS: tuple[Form, Form] = ("primal", "dual")


@dataclass(frozen=True)
class Factorisation:
    """One eigendecomposition of the centred, scaled voxels of a subject and a set of columns.

    Attributes:
        form: Which Gram matrix was decomposed.
        rows: n, training rows.
        columns: `(V,)` columns of the subject's voxels, or None for all.
        mean: `(V,)` subtracted from voxels.
        scale: `(V,)` then divided by.
        eigenvalues: `(r,)` of the Gram matrix, not negative.
        basis: `(V, r)` what maps centred voxels to coordinates.
        left: `(n, r)` eigenvectors over rows in the dual form, else None. Needed to fit targets, not to predict.
    """

    form: Form
    rows: int
    columns: torch.Tensor | None
    mean: torch.Tensor
    scale: torch.Tensor
    eigenvalues: torch.Tensor
    basis: torch.Tensor
    left: torch.Tensor | None = None

    def centre(self, voxels: torch.Tensor) -> torch.Tensor:
        """Return `(N, V)` centred and scaled columns of raw voxels `(N, V_subject)`."""
        chosen = voxels if self.columns is None else voxels[:, self.columns]
        return (chosen - self.mean) / self.scale

    def project(self, voxels: torch.Tensor) -> torch.Tensor:
        """Return the `(N, r)` coordinates of raw voxels `(N, V_subject)`."""
        return self.centre(voxels.to(self.mean.device, self.mean.dtype)) @ self.basis

    def inverse_roots(self) -> torch.Tensor:
        """Return `(r,)` factors turning primal coordinates of training rows into orthonormal ones, 0 for null ones."""
        largest = float(self.eigenvalues.max())
        # The usual bound of numerical rank: sizes times machine precision.
        null = self.eigenvalues <= largest * self.mean.numel() * torch.finfo(self.eigenvalues.dtype).eps
        return torch.where(null, torch.zeros_like(self.eigenvalues), self.eigenvalues.clamp_min(1e-300).rsqrt())

    def to(self, device: torch.device) -> Factorisation:
        """Return the same factorisation on another device, without `left`."""
        # `left` is of the training rows: predicting needs none of it, and it is as large as the Gram matrix.
        columns = None if self.columns is None else self.columns.to(device)
        moved = [part.to(device) for part in (self.mean, self.scale, self.eigenvalues, self.basis)]
        return Factorisation(self.form, self.rows, columns, *moved)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors, for files and caches."""
        named = {
            "form": torch.tensor([FORMS.index(self.form)]),
            "rows": torch.tensor([self.rows]),
            "columns": self.columns,
            "mean": self.mean,
            "scale": self.scale,
            "eigenvalues": self.eigenvalues,
            "basis": self.basis,
            "left": self.left,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, named: Mapping[str, torch.Tensor]) -> Factorisation:
        """Return the factorisation whose `tensors` these are."""
        return cls(
            form=FORMS[int(named["form"][0])],
            rows=int(named["rows"][0]),
            columns=named.get("columns"),
            mean=named["mean"],
            scale=named["scale"],
            eigenvalues=named["eigenvalues"],
            basis=named["basis"],
            left=named.get("left"),
        )


def as_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor without copying it, also when it is read-only shared memory.

    Args:
        array: Nobody writes to it: factorisations are only read.
        device: Where it is needed.
    """
    with warnings.catch_warnings():
        # An array from an object store is read-only; torch only warns that it cannot enforce that.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def factorise(
    rows: TrainingRows,
    columns: np.ndarray | None,
    scaled: bool,
    form: Form | None,
    gains: torch.Tensor | None = None,
) -> Factorisation:
    """Factorise the training voxels.

    Args:
        rows: The training rows of a subject.
        columns: Voxel columns, or None for all.
        scaled: Whether to divide each voxel by its standard deviation over the rows (divisor n).
        form: Which form to use; None chooses the smaller Gram matrix.
        gains: `(V,)` what each of the columns is multiplied by before it is penalised (bands); None for 1. A gain of 0
            leaves a voxel out.

    Returns:
        The factorisation, on the device and in the arithmetic of `rows`.
    """
    chosen = None if columns is None else torch.as_tensor(np.asarray(columns, dtype=np.int64), device=rows.device)
    mean = rows.moments.mean.to(rows.device, rows.dtype)
    scale = rows.moments.scale.to(rows.device, rows.dtype) if scaled else torch.ones_like(mean)
    if chosen is not None:
        # Moments are taken once over all voxels, in one pass, whatever the heads of the fit look at.
        mean, scale = mean[chosen], scale[chosen]
    if gains is not None:
        scale = scale / gains.to(scale)  # an infinite scale turns a voxel into 0
    # An eigendecomposition costs the cube of its size: the smaller Gram matrix decides.
    form = form or ("primal" if mean.numel() <= rows.count else "dual")
    nothing = torch.zeros(0, dtype=rows.dtype, device=rows.device)
    bare = Factorisation(form, rows.count, chosen, mean, scale, nothing, nothing)
    return _primal(bare, rows) if form == "primal" else _dual(bare, rows)


def _primal(bare: Factorisation, rows: TrainingRows) -> Factorisation:
    """Decompose `X'X`, summed over chunks of rows."""
    size = bare.mean.numel()
    gram = torch.zeros(size, size, dtype=rows.dtype, device=rows.device)
    for voxels, _ in rows.chunks([]):
        centred = bare.centre(voxels)
        gram.addmm_(centred.T, centred)
    # Rounding can leave null eigenvalues slightly negative.
    values, vectors = torch.linalg.eigh(gram)
    return Factorisation("primal", bare.rows, bare.columns, bare.mean, bare.scale, values.clamp_min(0), vectors)


def _dual(bare: Factorisation, rows: TrainingRows) -> Factorisation:
    """Decompose `X X'`; the rows are fewer than the voxels and are held together once."""
    centred = torch.cat([bare.centre(voxels) for voxels, _ in rows.chunks([])])
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    # Not normalised: dividing by the root of a tiny eigenvalue would blow up its rounding errors.
    basis = centred.T @ vectors
    return Factorisation("dual", bare.rows, bare.columns, bare.mean, bare.scale, values.clamp_min(0), basis, vectors)
