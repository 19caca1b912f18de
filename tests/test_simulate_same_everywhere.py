"""Simulated data are the same on every machine: exact arithmetic, and whole simulations under different settings.

The file is also a script: run with a folder, it simulates there and prints a digest of everything written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from threadpoolctl import threadpool_info

from bench.data.simulate import elementary, exact
from bench.data.simulate.brain.features import image_features
from bench.data.simulate.brain.responses import session_betas, simulate_subject
from bench.data.simulate.brain.tuning import reference_features
from bench.data.simulate.design import simulate_design
from bench.data.simulate.low_rank import LowRankNsd, LowRankOptions, low_rank_subject
from bench.data.simulate.nsd_copy import build, tables
from bench.data.simulate.presets import TINY
from bench.data.simulate.scenes.sampling import draw_batch, sample_scene

SESSIONS = [(1, 1), (1, 2), (2, 1)]
SMALL = replace(TINY, trials_per_session=80)
SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
"""Instructions beyond numpy's minimum that this processor has and numpy would use."""
AVX2 = bool({"X86_V3", "AVX2"} & set(SIMD))
AVX512 = bool({"X86_V4", "AVX512_SKX"} & set(SIMD))


def settings() -> list[dict[str, str]]:
    """Environments that this processor can run: a kernel of OpenBLAS that it lacks would end in an illegal instruction.

    Numpy's wheels have no kernels of their own for Zen and take Haswell's; other builds have.
    """
    kernels = [("Haswell", "1")] * AVX2 + [("SkylakeX", "2")] * AVX512 + [("Zen", "2")] * AVX2
    chosen = [{"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": threads} for kernel, threads in kernels]
    plain = {"OPENBLAS_CORETYPE": "SkylakeX" if AVX512 else "Haswell"} if AVX2 else {}
    return [*chosen, plain | {"OPENBLAS_NUM_THREADS": "2", "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD)}]


@pytest.fixture(scope="module")
def matrices() -> tuple[np.ndarray, np.ndarray]:
    """A left matrix within 4 and a right one whose columns have very different sizes."""
    rng = np.random.default_rng(0)
    left = np.clip(rng.standard_normal((40, 75), dtype=np.float32), -4, 4)
    return left, rng.standard_normal((75, 60), dtype=np.float32) * np.logspace(-6, 6, 60, dtype=np.float32)


def test_a_product_is_that_of_the_rounded_matrices(matrices):
    left, right = matrices[0][:5], matrices[1][:, ::6]
    result = exact.product(left, right, 4.0)
    left_step = Fraction(4, 1 << 22)
    for column in range(right.shape[1]):
        power = math.frexp(float(np.abs(right[:, column]).max()))[1]
        step = Fraction(2) ** (power - (31 - 7))  # 75 terms need 7 bits
        for row in range(len(left)):
            pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(left[row], right[:, column], strict=True)]
            rounded = sum(round(a / left_step) * left_step * round(b / step) * step for a, b in pairs)
            assert result[row, column] == np.float32(float(rounded))
            bound = sum(abs(b) for _, b in pairs) * left_step / 2 + step / 2 * (
                sum(abs(a) for a, _ in pairs) + 75 * left_step / 2
            )
            true = sum(a * b for a, b in pairs)
            assert abs(rounded - true) <= bound
            assert abs(float(result[row, column]) - true) <= bound + abs(rounded) / (1 << 24)


def test_a_product_depends_on_no_order_and_no_block(matrices, monkeypatch):
    left, right = matrices
    whole = exact.product(left, right, 4.0)
    assert whole.dtype == np.float32
    order = np.random.default_rng(1).permutation(75)
    np.testing.assert_array_equal(exact.product(left[:, order], right[order], 4.0), whole)
    for rows in (1, 7):
        blocks = [exact.product(left[start : start + rows], right, 4.0) for start in range(0, 40, rows)]
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(exact.product(left, np.asfortranarray(right), 4.0), whole)
    monkeypatch.setattr(exact, "COLUMNS_AT_ONCE", 7)
    np.testing.assert_array_equal(exact.product(left, right, 4.0), whole)
    # What all this is for: floats do not do so.
    assert not np.array_equal(left[:, order] @ right[order], left @ right)


def test_products_at_the_edge_of_what_is_exact():
    largest = np.full((2, 512), 4.0)
    just_below_one = 1 - 2.0**-20
    assert (exact.product(largest, np.full((512, 3), just_below_one), 4.0) == 4 * 512 * just_below_one).all()
    assert exact.product(largest[:, :0], np.zeros((0, 3)), 4.0).tolist() == [[0.0] * 3] * 2
    assert not exact.product(largest, np.zeros((512, 3)), 4.0).any()
    top = np.array([[2.0**26, 2.0**26 - 1]])
    below = np.array([[2.0**26], [-(2.0**26)]])
    assert int(exact.whole_product(top, below)[0, 0]) == (1 << 26) * (1 << 26) - ((1 << 26) - 1) * (1 << 26)


def test_what_would_not_be_exact_is_refused():
    ones = np.ones((3, 3))
    for left in (ones * 4.1, ones * -4.1, ones * np.nan):
        with pytest.raises(OverflowError, match=r"above its limit of 4\.0"):
            exact.product(left, ones, 4.0)
    with pytest.raises(ValueError, match="expected a power of two"):
        exact.product(ones, ones, 3.0)
    with pytest.raises(OverflowError, match="inner dimension 65537 is above 65536"):
        exact.product(np.ones((1, 65537)), np.ones((65537, 1)), 1.0)
    with pytest.raises(OverflowError, match="not exact in float64"):
        exact.whole_product(ones * 2.0**26, ones * 2.0**26)
    with pytest.raises(OverflowError, match="not exact in float64"):
        exact.product(ones, ones * np.nan, 1.0)
    with pytest.raises(ValueError, match="allowed are 100000"):
        elementary.cos(1e6)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 768])
def test_sums_against_exact_ones(count):
    values = np.random.default_rng(count).normal(3, 2, (count, 4)).astype(np.float32)
    for column in range(4):
        sums = math.fsum(values[:, column].astype(float))
        squares = math.fsum(values[:, column].astype(float) ** 2)
        assert exact.total(values)[column] == pytest.approx(sums, rel=1e-15)
        assert exact.mean(values)[column] == pytest.approx(sums / count, rel=1e-15)
        assert exact.norm(values)[column] == pytest.approx(math.sqrt(squares), rel=1e-15)
        assert exact.deviation(values)[column] == pytest.approx(values[:, column].astype(float).std(), abs=1e-14)


def test_sums_add_by_halves():
    one, tiny = 1.0, 2.0**-53  # each tiny number alone is lost beside the one
    assert exact.total(np.array([one, tiny, tiny, tiny])) == 1.0 + 2.0**-52
    assert exact.total(np.array([one, tiny, tiny])) == 1.0


def test_elementary_functions_against_the_c_library():
    x = np.concatenate([np.random.default_rng(0).uniform(-30, 30, 2000), [0.0, np.pi / 2, -np.pi, 700.0, -700.0]])
    for ours, theirs in ((elementary.exp, math.exp), (elementary.sin, math.sin), (elementary.cos, math.cos)):
        expected = [theirs(value) for value in x]
        np.testing.assert_allclose(ours(x), expected, rtol=1e-15 if theirs is math.exp else 0, atol=4e-16)
    positive = np.concatenate([elementary.exp(x), [1.0, 0.5, np.sqrt(0.5), 2.0, 1e-310, 1e308]])
    np.testing.assert_allclose(elementary.log(positive), [math.log(value) for value in positive], rtol=1e-15)
    base, exponent = np.abs(x[:, None]), np.array([0.3, 0.5, 0.8])
    expected = [[value**power for power in exponent] for value in base[:, 0]]
    np.testing.assert_allclose(elementary.power(base, exponent), expected, rtol=1e-14)
    assert elementary.exp(0.0) == elementary.power(1.0, 0.7) == elementary.sin(np.pi / 2) == elementary.cos(0.0) == 1.0
    assert elementary.log(1.0) == elementary.power(0.0, 0.7) == elementary.sin(0.0) == 0.0
    assert elementary.exp(-1e9) == elementary.exp(-700.0)


def test_interpolation_against_numpy():
    at, knots = np.linspace(-1, 5, 61), np.array([0.0, 0.5, 2.0, 4.0])
    np.testing.assert_allclose(exact.interpolate(at, knots, [1, 3, 2, 2]), np.interp(at, knots, [1, 3, 2, 2]))


def test_normal_numbers_end_where_the_c_library_would_have_a_say():
    for draw in (exact.normals, exact.short_normals):
        drawn = draw(np.random.default_rng(0), 200_000)
        assert np.abs(drawn).max() == drawn.dtype.type(exact.TAIL) < exact.NORMAL_LIMIT
        assert 20 < (np.abs(drawn) == np.abs(drawn).max()).sum() < 100
        assert drawn.std() == pytest.approx(1, abs=0.01)


def test_features_and_signal_of_a_picture_do_not_depend_on_the_others():
    scenes = [sample_scene(seed) for seed in range(20)]
    pictures = draw_batch(scenes, 50)
    pictures[3], pictures[4], pictures[5] = 0, 255, [0, 0, 255]  # features at their limits
    tuning = simulate_subject(TINY, 1).tuning
    whole = image_features(pictures, scenes)
    signal = tuning.signal(whole)
    for rows in (1, 7):
        for start in range(0, 20, rows):
            block = slice(start, start + rows)
            some = image_features(pictures[block], scenes[block])
            for name, values in vars(some).items():
                np.testing.assert_array_equal(values, getattr(whole, name)[block])
            np.testing.assert_array_equal(tuning.signal(some), signal[block])


def test_a_simulation_has_the_same_bytes_under_all_settings(tmp_path):
    def run(number: int, environment: dict[str, str]) -> dict[str, str]:
        # Sessions come in another order every second time.
        command = [sys.executable, __file__, str(tmp_path / str(number)), "reversed" if number % 2 else "sorted"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NPY_", "OMP_"))}
        done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    chosen = settings()
    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(run, range(len(chosen)), chosen))
    kernels = [made.pop("kernel") for made in digests]
    if AVX512 and "" not in kernels:
        assert set(kernels) >= {"Haswell", "SkylakeX"}
    first = digests[0]
    assert len(first) > 50
    for environment, made in zip(chosen, digests, strict=True):
        assert set(made) == set(first)
        assert [name for name in first if made[name] != first[name]] == [], environment


def digest(path: Path) -> str:
    """The digest of a file's content, without what its format adds (compression, dates)."""
    if path.suffix == ".gz":
        content = gzip.decompress(path.read_bytes())
    elif path.suffix == ".hdf5":
        with h5py.File(path) as file:
            content = b"".join(name.encode() + values(file[name]) for name in sorted(file))
    elif path.suffix == ".mat":
        fields = scipy.io.loadmat(path)
        content = b"".join(fields[name].tobytes() for name in sorted(fields) if isinstance(fields[name], np.ndarray))
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def values(data: h5py.Dataset) -> bytes:
    """The bytes of a dataset; of one chunk a picture, those of the chunks that are written."""
    if data.shape[0] <= SMALL.trials_per_session:
        return data[:].tobytes()
    places = sorted(data.id.get_chunk_info(number).chunk_offset[0] for number in range(data.id.get_num_chunks()))
    return b"".join(str(place).encode() + data[place].tobytes() for place in places)


def simulate_here(root: Path, order: list[tuple[int, int]]) -> dict[str, str]:
    """Simulates a part of the tiny preset, as files and as shards are made, and returns digests by name."""
    design, reference = simulate_design(SMALL.seed), reference_features(SMALL)
    tables.write_design(root, design)  # the table of stimuli is the design again, in ten times the time
    tables.write_responses(root, design, 1, 2, SMALL.seed)
    truths = {subject: build.write_subject(root, SMALL, subject, reference) for subject in SMALL.subjects}
    owned = build.first_shown(SMALL, design)
    pictures = {pair: build.write_session(root, truths[pair[0]], pair[1], owned[pair]) for pair in order}
    made = [pictures[pair] for pair in SESSIONS]
    tables.write_stimuli(root, ((some.numbers, some.images) for some in made), SMALL.image_size)
    texts = {int(n): text for some in made for n, text in zip(some.numbers, some.captions, strict=True)}
    tables.write_captions(root, texts, design.sharedix[0] - 1)
    digests = {str(path.relative_to(root)): digest(path) for path in root.rglob("*") if path.is_file()}

    drawn = {subject: low_rank_subject(SMALL, subject) for subject in SMALL.subjects}
    dataset = LowRankNsd(LowRankOptions(SMALL), drawn)
    arrays = {f"loadings {subject}": each.loadings for subject, each in drawn.items()}
    arrays |= {f"table {subject}": each.table.ncsnr for subject, each in drawn.items()}
    for subject, session in order:
        table = drawn[subject].table
        arrays[f"low rank {subject} {session}"] = dataset.read_session(subject, session, table).betas
        # Before they are rounded to int16, which hides most differences.
        still = np.zeros((SMALL.trials_per_session, truths[subject].responsive.size), np.float32)
        arrays[f"noise {subject} {session}"] = session_betas(truths[subject], session, still)
    for subject, truth in truths.items():
        arrays[f"signal {subject}"] = truth.signal(reference)
        arrays |= {f"{name} {subject}": getattr(truth.anatomy, name) for name in ("field_x", "field_y", "field_size")}
    return digests | {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


if __name__ == "__main__":
    kernel = [str(library.get("architecture", "")) for library in threadpool_info() if "numpy" in library["filepath"]]
    found = simulate_here(Path(sys.argv[1]), SESSIONS if sys.argv[2] == "sorted" else SESSIONS[::-1])
    json.dump(found | {"kernel": "".join(kernel)}, sys.stdout)
