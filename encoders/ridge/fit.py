"""Fitting the heads of one subject that see the same voxels: they share a factorisation (or one a band candidate)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from encoders.base import Head
from encoders.ridge.bands import Bands, bands_of
from encoders.ridge.gram import Factorisation, factorise
from encoders.ridge.options import RidgeOptions
from encoders.ridge.penalties import best_rows
from encoders.ridge.quadratic_forms import compare
from encoders.ridge.rows import Piece, TrainingRows, pieces_of, with_slices
from encoders.ridge.selection import Comparison, Question
from encoders.ridge.store import Candidates
from encoders.ridge.targets import sum_targets

_LOG = logging.getLogger(__name__)
Put = Callable[[Piece, torch.Tensor], None]
"""Stores the `(r, width)` cross-products of a piece."""


@dataclass(frozen=True)
class Choice:
    """The penalties of a head.

    Attributes:
        alpha: `(D,)` float64.
        candidate: `(D,)` int64, which candidate of band scales; 0 in plain ridge.
        error: `(D,)` float64 held-out error relative to the target's variance.
    """

    alpha: torch.Tensor
    candidate: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True)
class GroupFit:
    """What is kept of a fit, besides the target blocks.

    Attributes:
        factors: The factorisations that some target uses.
        shares: `(F, m)` band shares of each; `(1, 0)` in plain ridge.
        names: Names of the m bands.
        means: For each head `(D,)` target means.
        choices: For each head its penalties; `candidate` counts in `factors`.
    """

    factors: tuple[Factorisation, ...]
    shares: torch.Tensor
    names: tuple[str, ...]
    means: dict[str, torch.Tensor]
    choices: dict[str, Choice]


def fit_group(
    rows: TrainingRows,
    heads: Sequence[Head],
    options: RidgeOptions,
    seed: int,
    put: Put,
    cached: Factorisation | None,
) -> GroupFit:
    """Fit heads that see the same voxels, block after block of targets.

    Args:
        rows: The subject's training rows.
        heads: The heads.
        options: Options of the encoder.
        seed: Which stimuli share a fold.
        put: Stores a piece's cross-products.
        cached: The factorisation where it is known, for plain ridge.
    """
    if options.bands:
        return _fit_bands(rows, heads, options, seed, put)
    # Any head will do: all of them see the same voxels.
    factor = cached or factorise_head(rows, heads[0], options)
    alphas = _grid_of(heads, options)
    comparison = None
    if options.alpha is None:
        question = Question(options.select, alphas, options.folds, seed)
        comparison = compare(question, factor, rows, heads, options.scope)
    means: dict[str, list[torch.Tensor]] = {head.name: [] for head in heads}
    for piece, cross, mean in _solved(factor, rows, heads, options.block, comparison):
        put(piece, cross)
        means[piece.head.name].append(mean)
    choices = {head.name: _start_of(head, options) for head in heads}
    if comparison is not None:
        choices = {head.name: _better(choices[head.name], comparison, head, options, alphas, 0) for head in heads}
    joined = {name: torch.cat(parts).cpu() for name, parts in means.items()}
    return GroupFit((factor,), torch.zeros(1, 0), (), joined, choices)


def factorise_head(
    rows: TrainingRows, head: Head, options: RidgeOptions, gains: torch.Tensor | None = None
) -> Factorisation:
    """Factorise the voxels a head sees, and say in which form.

    Args:
        rows: The training rows.
        head: The head, or one of several that see the same voxels.
        options: Options of the encoder.
        gains: `(V,)` scales of the voxels, or None.
    """
    columns = None if head.columns is None else head.columns[rows.data.subject]
    form = None if options.form == "auto" else options.form
    factor = factorise(rows, columns, options.standardise_voxels, form, gains)
    shape = (factor.rows, factor.mean.numel())
    _LOG.info("subject %d: %s ridge of %d rows and %d voxels", rows.data.subject, factor.form, *shape)
    return factor


def _grid_of(heads: Sequence[Head], options: RidgeOptions) -> tuple[float, ...]:
    """Return every alpha that some head may have."""
    return tuple(dict.fromkeys(alpha for head in heads for alpha in options.alphas_of(head.name)))


def _start_of(head: Head, options: RidgeOptions) -> Choice:
    """Return what a head has before anything is compared: the largest alpha, and bands of one scale."""
    # The largest: what nothing can be chosen for (a constant target) is best predicted by its mean.
    alpha = torch.full((head.size,), max(options.alphas_of(head.name)), dtype=torch.float64)
    return Choice(alpha, torch.zeros(head.size, dtype=torch.int64), torch.full_like(alpha, torch.inf))


def _solved(
    factor: Factorisation, rows: TrainingRows, heads: Sequence[Head], block: int, comparison: Comparison | None
) -> Iterator[tuple[Piece, torch.Tensor, torch.Tensor]]:
    """Yield each piece with its cross-products `(r, width)` and means `(width,)`, showing blocks to a comparison."""
    for pieces in pieces_of(heads, block):
        sums = sum_targets(factor, rows, pieces, keep=comparison is not None and comparison.keeps_targets)
        if comparison is not None:
            comparison.update(pieces, sums)
        for piece, run in with_slices(pieces):
            yield piece, sums.cross[:, run], sums.mean[run]


def _better(
    held: Choice, comparison: Comparison, head: Head, options: RidgeOptions, alphas: tuple[float, ...], number: int
) -> Choice:
    """Return the better of what a head holds and of what a candidate offers, target by target or for the head."""
    errors, variance = comparison.table(head.name)
    mine = options.alphas_of(head.name)
    # A head with a fixed alpha shares the comparison, but may take only its own.
    allowed = [alphas.index(alpha) for alpha in mine]
    found, error = (part.cpu().expand(head.size) for part in best_rows(errors[allowed], variance, options.scope))
    if lost := [alpha for alpha, row in zip(mine, errors[allowed], strict=True) if not torch.isfinite(row).all()]:
        _LOG.warning("head %s: alphas %s are too small for %s arithmetic", head.name, lost, options.precision)
    # Strictly: between equals the earlier candidate stays, and with it plain ridge.
    better = error < held.error
    alpha = torch.where(better, torch.tensor(mine, dtype=torch.float64)[found], held.alpha)
    candidate = torch.where(better, number, held.candidate)
    _LOG.info("head %s, candidate %d: alpha %g to %g", head.name, number, float(alpha.min()), float(alpha.max()))
    return Choice(alpha, candidate, torch.where(better, error, held.error))


def _fit_bands(rows: TrainingRows, heads: Sequence[Head], options: RidgeOptions, seed: int, put: Put) -> GroupFit:
    """Compare candidates of band scales, then solve every target with its own."""
    columns = None if heads[0].columns is None else heads[0].columns[rows.data.subject]
    bands = bands_of(rows.data, options.bands, columns)
    shares = bands.draw(options.candidates, options.concentration, options.bands_seed)
    candidates = Candidates()
    choices = _compare_candidates(rows, heads, options, seed, bands, shares, candidates)
    # Only factorisations that some target uses go into the state.
    used = sorted({int(number) for choice in choices.values() for number in choice.candidate.unique()})
    factors = tuple(candidates.get(number, rows.device) for number in used)
    place = torch.full((len(shares),), -1, dtype=torch.int64)
    place[used] = torch.arange(len(used))
    final = {name: Choice(held.alpha, place[held.candidate], held.error) for name, held in choices.items()}
    means = _solve_candidates(rows, heads, options.block, factors, final, put)
    return GroupFit(factors, torch.from_numpy(shares[used]), bands.names, means, final)


def _compare_candidates(
    rows: TrainingRows,
    heads: Sequence[Head],
    options: RidgeOptions,
    seed: int,
    bands: Bands,
    shares: np.ndarray,
    candidates: Candidates,
) -> dict[str, Choice]:
    """Return the best candidate and alpha of every target; the factorisations of preferred ones are stored."""
    alphas = _grid_of(heads, options)
    question = Question(options.select, alphas, options.folds, seed)
    choices = {head.name: _start_of(head, options) for head in heads}
    for number, row in enumerate(shares):
        factor = factorise_head(rows, heads[0], options, bands.gains(row))
        candidates.put(number, factor)
        comparison = compare(question, factor, rows, heads, options.scope)
        for _ in _solved(factor, rows, heads, options.block, comparison):
            pass  # only the errors are wanted here
        choices = {head.name: _better(choices[head.name], comparison, head, options, alphas, number) for head in heads}
        # What no target prefers by now never wins later: errors only fall.
        candidates.keep_only([int(n) for choice in choices.values() for n in choice.candidate.unique()])
    return choices


def _solve_candidates(
    rows: TrainingRows,
    heads: Sequence[Head],
    block: int,
    factors: Sequence[Factorisation],
    choices: dict[str, Choice],
    put: Put,
) -> dict[str, torch.Tensor]:
    """Store every target's cross-products with the factorisation it uses, and return the means of each head."""
    means: dict[str, list[torch.Tensor]] = {head.name: [] for head in heads}
    for pieces in pieces_of(heads, block):
        chosen = torch.cat([choices[piece.head.name].candidate[piece.start : piece.stop] for piece in pieces])
        chosen = chosen.to(rows.device)
        sums = sum_targets(factors[0], rows, pieces, keep=False)
        # All candidates have coordinates of one size: that of the Gram matrix.
        for number in (int(n) for n in chosen.unique() if n):
            mine = chosen == number
            sums.cross[:, mine] = sum_targets(factors[number], rows, pieces, keep=False).cross[:, mine]
        for piece, run in with_slices(pieces):
            put(piece, sums.cross[:, run])
            means[piece.head.name].append(sums.mean[run].cpu())
    return {name: torch.cat(parts) for name, parts in means.items()}
