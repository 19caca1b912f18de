"""Leave-one-out and k-fold errors as quadratic forms of a target's coordinates: cheap where targets are many.

In the dual form the coordinates `c = U'y` hold all of a centred target, since U is square. Each held-out error is
linear in them, `e = G K c` with `K = diag(alpha / (s + alpha))` and, without a row i or without a fold F,

    G_i = U_i / (1 - h_ii)          G_F = (I - H_FF)^-1 U_F          (Allen 1974, and its blocks)

so the sum of squares over all rows is `c' K N K c` with `N = G'G`, a matrix that no target enters. For one alpha a head
only `W = sum_t c c' / variance` is needed: the D targets are met once, not once an alpha. For one alpha a target N is
factorised, `N = T'T`; a triangular T takes half the operations of the product with U that going through the rows
takes. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from encoders.base import Head
from encoders.ridge.gram import Factorisation
from encoders.ridge.penalties import Scope, solve_positive, usable_rest
from encoders.ridge.rows import Piece, TrainingRows, with_slices
from encoders.ridge.selection import Comparison, DirectComparison, EachTarget, Question, folds_of
from encoders.ridge.targets import TargetSums

_PAYS_FROM = 3  # targets a row: below it making the forms costs more than they save
_PANELS, _NARROWEST = 16, 256


def compare(
    question: Question, factor: Factorisation, rows: TrainingRows, heads: Sequence[Head], scope: Scope
) -> Comparison:
    """Return the cheapest comparison of alphas for some heads.

    Args:
        question: What is compared.
        factor: The factorisation.
        rows: Its training rows.
        heads: All heads that will be shown to the comparison.
        scope: Whether an alpha is chosen for a head or for each target.
    """
    # The forms stand on coordinates that hold all of a target: the dual ones do, the primal ones only its fitted part.
    wide = sum(head.size for head in heads) > _PAYS_FROM * factor.rows
    if factor.form == "primal" or question.method not in ("loo", "kfold") or not wide:
        return DirectComparison(question, factor, rows)
    return HeadForms(question, factor, rows) if scope == "global" else TargetForms(question, factor, rows)


class _Forms:
    """The matrices N of one factorisation."""

    def __init__(self, question: Question, factor: Factorisation, rows: TrainingRows) -> None:
        assert factor.left is not None
        self.alphas = question.alphas
        self._left, self._eigenvalues = factor.left, factor.eigenvalues
        self._folds = folds_of(question, rows)

    def kept(self, alpha: float) -> torch.Tensor:
        """Return `(r,)` the diagonal of K: what the fit leaves of each coordinate."""
        return alpha / (self._eigenvalues + alpha)

    def gram(self, alpha: float) -> torch.Tensor:
        """Return `(r, r)` N."""
        weighted = self._weighted(alpha)
        size, width = weighted.shape[1], panel_width(weighted.shape[1])
        gram = torch.zeros(size, size, dtype=weighted.dtype, device=weighted.device)
        # Only the upper triangle is multiplied out.
        for start in range(0, size, width):
            gram[start : start + width, start:] = weighted[:, start : start + width].T @ weighted[:, start:]
        return gram.triu() + gram.triu(1).T

    def _weighted(self, alpha: float) -> torch.Tensor:
        """Return `(n, r)` G, every row computed without itself or its fold."""
        kept, count = self.kept(alpha), self._left.shape[0]
        if not self._folds:
            # 1 - h_ii, with the intercept's 1/n; U has orthonormal rows.
            rest = usable_rest(self._left.square() @ kept - 1 / count)
            return self._left / rest[:, None]
        weighted = torch.empty_like(self._left)
        for fold in self._folds:
            part = self._left[fold]
            weighted[fold] = solve_positive((part * kept) @ part.T - 1 / count, part)
        return weighted


class HeadForms(Comparison):
    """One alpha a head: `sum(N * K W K)`, W summed over the blocks of the head."""

    def __init__(self, question: Question, factor: Factorisation, rows: TrainingRows) -> None:
        """Prepare the sums.

        Args:
            question: What is compared: leave-one-out or folds.
            factor: A dual factorisation.
            rows: Its training rows.
        """
        self._forms, self._count = _Forms(question, factor, rows), factor.rows
        self._sums: dict[str, torch.Tensor] = {}
        self._varying: dict[str, int] = {}
        self._relative: dict[str, torch.Tensor] = {}

    def update(self, pieces: Sequence[Piece], sums: TargetSums) -> None:
        """Add a block of targets; see `Comparison.update`."""
        for piece, run in with_slices(pieces):
            variance = sums.variance[run]
            # Divided here, so that errors add up to relative ones; a constant target has none.
            varies = variance > 0
            unit = sums.cross[:, run][:, varies] * variance[varies].rsqrt()
            name = piece.head.name
            held = self._sums.setdefault(name, unit.new_zeros(unit.shape[0], unit.shape[0]))
            held.addmm_(unit, unit.T)
            self._varying[name] = self._varying.get(name, 0) + int(varies.sum())

    def table(self, head: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean relative error of each alpha; see `Comparison.table`."""
        if not self._relative:
            self._compare()
        return self._relative[head][:, None], self._relative[head].new_ones(1) * (self._varying[head] > 0)

    def _compare(self) -> None:
        """Meet every alpha's form with the sums of all heads."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self._sums}
        for alpha in self._forms.alphas:
            kept, gram = self._forms.kept(alpha), self._forms.gram(alpha)
            # The sum below is the trace of N K W K: no further product of matrices.
            gram.mul_(kept).mul_(kept[:, None])
            for name, held in self._sums.items():
                found[name].append((gram * held).sum() / (self._count * max(self._varying[name], 1)))
        self._relative = {name: torch.stack(values) for name, values in found.items()}


class TargetForms(EachTarget):
    """One alpha a target: `|T K c|^2`, with the panels of every alpha's T held for all blocks.

    They are `A r^2 / 2` numbers: 3.5 GB in float64 for Brain-Diffuser's 8,859 rows and 11 alphas.
    """

    def __init__(self, question: Question, factor: Factorisation, rows: TrainingRows) -> None:
        """Factorise the form of each alpha.

        Args:
            question: What is compared: leave-one-out or folds.
            factor: A dual factorisation.
            rows: Its training rows.
        """
        super().__init__()
        forms = _Forms(question, factor, rows)
        self._count = factor.rows
        self._panels = [_triangle(forms, alpha) for alpha in forms.alphas]

    def errors(self, pieces: Sequence[Piece], sums: TargetSums) -> torch.Tensor:
        """Return the `(A, width)` errors of a block; see `EachTarget.errors`."""
        return torch.stack([_squared_length(panels, sums.cross) for panels in self._panels]) / self._count


def panel_width(size: int) -> int:
    """Return how many rows of a triangle are multiplied at once: few operations wasted, products wide enough."""
    return max(_NARROWEST, -(-size // _PANELS))


def _triangle(forms: _Forms, alpha: float) -> list[torch.Tensor]:
    """Return the panels of `T K`, upper triangular, each from its diagonal on; none where alpha is too small."""
    upper, failed = torch.linalg.cholesky_ex(forms.gram(alpha), upper=True)
    if int(failed):
        return []
    upper *= forms.kept(alpha)
    width = panel_width(upper.shape[0])
    return [upper[start : start + width, start:].clone() for start in range(0, upper.shape[0], width)]


def _squared_length(panels: Sequence[torch.Tensor], coordinates: torch.Tensor) -> torch.Tensor:
    """Return `(width,)` squared lengths of `T K c` for each column c, infinite where there are no panels."""
    width = coordinates.shape[1]
    total = coordinates.new_full((width,), 0.0 if panels else torch.inf)
    # One piece of memory for all products: fresh pages cost as much as the sums.
    space = coordinates.new_empty(max((len(panel) for panel in panels), default=0), width)
    for panel in panels:
        part = torch.mm(panel, coordinates[-panel.shape[1] :], out=space[: len(panel)])
        total += part.square_().sum(dim=0)
    return total
