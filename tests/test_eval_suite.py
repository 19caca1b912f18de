"""The suite on the shipped scene network: agreement with the metrics, invariances, protocols, bad input."""

import dataclasses
import difflib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision import transforms

from eval.metrics.correlation_distance import CORRELATION_DISTANCE, correlation_distance
from eval.metrics.identification import TWO_WAY_IDENTIFICATION, Identification
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.ssim import SSIM
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks.scene.network import SCENE
from eval.pictures import Resize, planes_last
from eval.protocols.base import MetricSpec, Protocol, find, names
from eval.suite import score

COLUMNS = [
    "pixcorr",
    "ssim",
    "scene-low",
    "scene-mid",
    "scene-high",
    "scene-embedding",
    "scene-mid-dist",
    "scene-high-dist",
]


@pytest.fixture(scope="module")
def pictures():
    """Reconstructions `(12, 2, 3, 64, 64)` and truths `(12, 3, 64, 64)`, smooth and noisy."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.random((12, 3, 64, 64)), (0, 0, 5, 5))
    truth = (truth - truth.min()) / (truth.max() - truth.min())
    noisy = np.clip(truth[:, None] + 0.3 * rng.standard_normal((12, 2, 3, 64, 64)), 0, 1)
    return torch.from_numpy(noisy).float(), torch.from_numpy(truth).float()


@pytest.fixture(scope="module")
def scores(pictures):
    return score(pictures[0][:, 0], pictures[1], "scenes-1")


def test_eight_columns_in_order(scores):
    assert [metric.name for metric in scores.metrics] == COLUMNS == list(scores.per_image)
    assert all(metric.status == "ok" and metric.n == 12 for metric in scores.metrics)
    assert [metric.higher_is_better for metric in scores.metrics] == [True] * 6 + [False] * 2


def test_values_equal_the_metrics_on_features(pictures, scores):
    x, y = pictures[0][:, 0], pictures[1]
    size = Resize(64, antialias=True)
    extract = Extractor(SCENE, weights.load(SCENE, None, torch.device("cpu")), size, size, 12)
    fx, fy = extract(x, SCENE.taps), extract(y, SCENE.taps)
    expected = {"pixcorr": PIXCORR(x, y), "ssim": SSIM(x, y)}
    for tap in SCENE.taps:
        expected[f"scene-{tap}"] = TWO_WAY_IDENTIFICATION(fx[tap], fy[tap], Identification(ties="half"))
    for tap in ("mid", "high"):
        expected[f"scene-{tap}-dist"] = correlation_distance(fx[tap], fy[tap])
    for name in COLUMNS:
        np.testing.assert_allclose(scores.per_image[name], expected[name], atol=1e-5)
        result = scores[name]
        assert result.value == pytest.approx(scores.per_image[name].mean())
        assert result.interval[0] <= result.value <= result.interval[1]


def test_batch_size_changes_nothing(pictures, scores):
    again = score(pictures[0][:, 0], pictures[1], "scenes-1", batch=5)
    for name in COLUMNS:
        np.testing.assert_allclose(again.per_image[name], scores.per_image[name], atol=1e-5)


def test_order_of_images_changes_only_their_order(pictures, scores):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    again = score(pictures[0][order, 0], pictures[1][order], "scenes-1")
    for name in COLUMNS:
        np.testing.assert_allclose(again.per_image[name], scores.per_image[name][order.numpy()], atol=1e-5)


def test_truth_scores_best(pictures):
    perfect = score(pictures[1], pictures[1], "scenes-1")
    assert [metric.value for metric in perfect.metrics] == pytest.approx([1.0] * 6 + [0.0] * 2, abs=1e-6)


def test_samples_are_scored_each_and_averaged(pictures, scores):
    both = score(pictures[0], pictures[1], "scenes-1")
    second = score(pictures[0][:, 1], pictures[1], "scenes-1")
    assert both.samples == 2
    for name in COLUMNS:
        mean = (scores.per_image[name] + second.per_image[name]) / 2
        np.testing.assert_allclose(both.per_image[name], mean, atol=1e-5)


def test_sizes_and_types_may_differ(pictures):
    levels = (pictures[1] * 255).round().to(torch.uint8)
    large = torch.nn.functional.interpolate(pictures[1], (128, 96))
    assert score(levels, pictures[1], "scenes-1")["pixcorr"].value > 0.999
    assert score(large, levels, "scenes-1")["pixcorr"].value > 0.98


@pytest.fixture
def counted():
    """scenes-1 whose network notes how many pictures each of its passes takes, and those notes."""
    passes = []

    def forward(module, pixels):
        passes.append(len(pixels))
        return SCENE.forward(module, pixels)

    return _on(dataclasses.replace(SCENE, forward=forward)), passes


def _on(network):
    """scenes-1 with another network."""
    metrics = [
        dataclasses.replace(m, feature=dataclasses.replace(m.feature, network=network)) if m.feature else m
        for m in find("scenes-1").metrics
    ]
    return dataclasses.replace(find("scenes-1"), metrics=tuple(metrics))


def _copied(cache):
    return {key: values.copy() for key, values in cache.items()}


def test_cached_truth_features_give_the_same_numbers(pictures, scores, counted):
    protocol, passes = counted
    cache = {}
    first = score(pictures[0][:, 0], pictures[1], protocol, features=cache)
    assert sum(passes) == 12 + 12  # reconstructions and truths
    second = score(pictures[0][:, 0], pictures[1], protocol, features=cache)
    assert sum(passes) == 24 + 12  # the truths had passed
    for name in COLUMNS:
        np.testing.assert_array_equal(first.per_image[name], second.per_image[name])
        np.testing.assert_array_equal(first.per_image[name], scores.per_image[name])
    before = _copied(cache)
    score(pictures[0][:, 1], pictures[1], protocol, features=cache)
    assert cache.keys() == before.keys()  # nothing of reconstructions is kept
    for key, values in cache.items():  # whoever compares leaves them as they are
        np.testing.assert_array_equal(values, before[key])


def test_what_a_cache_holds_is_what_is_compared_with(pictures, scores):
    cache = {}
    score(pictures[0][:, 0], pictures[1], "scenes-1", features=cache)
    for values in cache.values():
        values[:] = values[::-1].copy()
    turned = score(pictures[0][:, 0], pictures[1], "scenes-1", features=cache)
    for name in ("pixcorr", "ssim", "scene-mid"):
        assert turned[name].value < scores[name].value
    spoilt = _copied(cache)
    others = score(pictures[0][:, 0], pictures[1].flip(0), "scenes-1", features=cache)
    plain = score(pictures[0][:, 0], pictures[1].flip(0), "scenes-1")
    for name in COLUMNS:  # other pictures, other entries
        np.testing.assert_array_equal(others.per_image[name], plain.per_image[name])
    assert len(cache) > len(spoilt)
    for key, values in spoilt.items():
        np.testing.assert_array_equal(cache[key], values)


def test_read_only_caches_serve(pictures, scores):
    """Entries of a cache on disk come as memory maps that must not be written."""
    cache = {}
    score(pictures[0][:, 0], pictures[1], "scenes-1", features=cache)
    for values in cache.values():
        values.flags.writeable = False
    again = score(pictures[0][:, 0], pictures[1], "scenes-1", features=cache)
    for name in COLUMNS:
        np.testing.assert_array_equal(again.per_image[name], scores.per_image[name])


def test_prepared_truths_are_kept_up_to_a_limit(pictures, scores, monkeypatch):
    """Of 12 pictures in parts of 8 the first part is kept; the last 4 would pass the limit, and count no worse."""
    pixels = dataclasses.replace(find("scenes-1"), metrics=find("scenes-1").metrics[:2])
    assert {metric.name for metric in pixels.metrics} == {"pixcorr", "ssim"}
    whole, cache = {}, {}
    score(pictures[0][:, 0], pictures[1], pixels, features=whole)
    held = _nbytes(whole)
    monkeypatch.setattr("eval._scoring.pixels.MOST_KEPT", held - 1)
    for _ in range(2):
        partly = score(pictures[0][:, 0], pictures[1], pixels, features=cache)
        assert _nbytes(cache) == pytest.approx(held * 8 / 12)
        for metric in pixels.metrics:
            np.testing.assert_array_equal(partly.per_image[metric.name], scores.per_image[metric.name])


def _nbytes(cache):
    return sum(values.nbytes for values in cache.values())


def test_protocols_share_no_prepared_truths_of_other_sizes(pictures):
    cache = {}
    for size in (40, 48):
        protocol = Protocol("p", 1, "", None, (MetricSpec("x", "X", PIXCORR, resize=Resize(size, False)),))
        given = score(pictures[0], pictures[1], protocol, features=cache)
        np.testing.assert_array_equal(given.per_image["x"], score(pictures[0], pictures[1], protocol).per_image["x"])
    before = _copied(cache)
    same = dataclasses.replace(protocol, name="q", metrics=(dataclasses.replace(protocol.metrics[0], name="y"),))
    again = score(pictures[0], pictures[1], same, features=cache)
    assert cache.keys() == before.keys()  # names are not what a prepared truth depends on
    np.testing.assert_array_equal(again.per_image["y"], given.per_image["x"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_planes_last_changes_nothing_but_the_layout(dtype):
    images = (torch.rand(5, 3, 7, 9, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    laid = planes_last(images)
    assert torch.equal(laid, images)
    assert laid.stride() == (3, 1, 9 * 15, 15)
    assert planes_last(laid) is laid


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("count", [1, 2, 8, 9])
def test_resizing_planes_last_is_resizing(interpolation, antialias, count):
    images = torch.rand(count, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    for size in (31, 67):
        step = Resize(size, antialias, interpolation)
        resized = step(planes_last(images))
        torch.testing.assert_close(resized, step(images), rtol=0, atol=1e-5)
        if count > 1:  # one alone passes twice, and is a part of what came out
            assert planes_last(resized) is resized


def test_untrained_is_marked_and_repeats(pictures, scores):
    first, second = (score(pictures[0][:, 0], pictures[1], "scenes-1", "untrained") for _ in range(2))
    assert first.untrained
    assert first.weights == {"scene": "untrained:0"}
    assert not scores.untrained
    assert len(scores.weights["scene"]) == 64
    for name in COLUMNS:
        np.testing.assert_array_equal(first.per_image[name], second.per_image[name])
    assert first["scene-high-dist"].value != scores["scene-high-dist"].value


def test_one_image_cannot_be_identified(pictures):
    single = score(pictures[0][:1, 0], pictures[1][:1], "scenes-1")
    assert single["scene-low"].status == "not computed: needs at least 2 images"
    assert (single["scene-low"].value, single["scene-low"].interval) == (None, None)
    assert single["pixcorr"].value is not None
    assert single["pixcorr"].standard_error is None
    assert "scene-low" not in single.to_table().column_names


def test_metrics_say_what_they_need(pictures):
    spec = MetricSpec("brain", "Brain corr.", PIXCORR, needs=("images", "betas"))
    protocol = Protocol("test", 1, "", Resize(64, antialias=False), (spec, MetricSpec("pixcorr", "PixCorr", PIXCORR)))
    result = score(pictures[0], pictures[1], protocol)
    assert result["brain"].status == "not computed: needs betas"
    assert result["pixcorr"].status == "ok"


def test_table_round_trips_through_parquet(scores, tmp_path):
    pq.write_table(scores.to_table(), tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["image", *COLUMNS]
    assert table.schema.metadata[b"protocol"] == b"scenes-1"
    assert table.schema.metadata[b"weights.scene"].decode() == scores.weights["scene"]
    np.testing.assert_array_equal(table["ssim"].to_numpy(), scores.per_image["ssim"])
    json.dumps([dataclasses.asdict(metric) for metric in scores.metrics], allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:-1], y), "11 reconstructions for 12 truths"),
        (lambda x, y: (x * 255, y), r"reconstructions .* image 0 has values from .* divide 0-255 floats by 255"),
        (lambda x, y: (x, y - 0.5), r"truth must be uint8, or floating point in \[0, 1\]"),
        (lambda x, y: (x.index_fill(0, torch.tensor(4), float("nan")), y), "image 4 has values from nan"),
        (lambda x, y: (x[:, :1], y), r"of shape \(N, 3, H, W\) or \(N, S, 3, H, W\); got shape \(12, 1, 64, 64\)"),
        (lambda x, y: (x, y[:, None]), r"truth must be .* got shape \(12, 1, 3, 64, 64\)"),
        (lambda x, y: ((x * 255).to(torch.int64), y), "got torch.int64"),
        (lambda x, y: (x[:0], y[:0]), r"got shape \(0, 3, 64, 64\)"),
    ],
)
def test_bad_pictures_are_named(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        score(*change(pictures[0][:, 0], pictures[1]), "scenes-1")


def test_every_file_is_a_protocol_of_that_name():
    assert {"mindeye2", "scenes-1"} <= set(names())
    for name in names():
        protocol = find(name)
        assert protocol.name == name
        assert protocol.version >= 1
        assert all(protocol[metric.name] is metric for metric in protocol.metrics)


def test_unknown_names_offer_the_nearest(pictures):
    with pytest.raises(ValueError, match=r"unknown protocol 'mindeye-2', allowed: .*; did you mean 'mindeye2'\?"):
        score(pictures[0], pictures[1], "mindeye-2")
    with pytest.raises(KeyError, match=r"unknown metric 'scene-hi'.* did you mean 'scene-high'"):
        find("scenes-1")["scene-hi"]


def test_mindeye2_states_the_published_choices():
    """Sizes, layers and weights of MindEye2's notebook with torchvision 0.16 and scikit-image 0.22."""
    features = {
        m.name: (m.feature.network.name, m.feature.tap, m.feature.resize.size, m.formula.name)
        for m in find("mindeye2").metrics
        if m.feature
    }
    identification, distance = "two-way-identification", "correlation-distance"
    assert features == {
        "alex2": ("alexnet", "features.4", 256, identification),
        "alex5": ("alexnet", "features.11", 256, identification),
        "inception": ("inception_v3", "avgpool", 342, identification),
        "clip": ("clip_vit_l14", "encode_image", 224, identification),
        "effnet": ("efficientnet_b1_v2", "avgpool", 255, distance),
        "swav": ("swav_resnet50", "avgpool", 224, distance),
    }
    protocol = find("mindeye2")
    assert protocol.first == Resize(256, antialias=False)
    assert [protocol[name].resize for name in ("pixcorr", "ssim")] == [Resize(425, antialias=False)] * 2
    assert all(m.reads_out == Identification() for m in protocol.metrics if m.kind == "identification")
    assert [m.chance for m in protocol.metrics[:8]] == [None, None, 0.5, 0.5, 0.5, 0.5, None, None]
    assert [m.ranked for m in protocol.metrics] == [True] * 8 + [False] * 3


def test_protocols_compare_line_by_line():
    lines = find("mindeye2").lines()
    changed = dataclasses.replace(find("mindeye2"), first=Resize(256, antialias=True)).lines()
    difference = [line for line in difflib.ndiff(lines, changed) if line[0] in "+-"]
    assert difference == [
        "- first: Resize(size=256, antialias=False, interpolation='bilinear')",
        "+ first: Resize(size=256, antialias=True, interpolation='bilinear')",
    ]
    assert not any("0x" in line for line in lines)


def test_inconsistent_protocols_are_refused():
    with pytest.raises(ValueError, match="'x': two-way-identification and feature None"):
        MetricSpec("x", "X", TWO_WAY_IDENTIFICATION)
    feature = dataclasses.replace(find("scenes-1")["scene-low"].feature, tap="lowest")
    with pytest.raises(ValueError, match=r"scene has taps \('low', 'mid', 'high', 'embedding'\)"):
        MetricSpec("x", "X", CORRELATION_DISTANCE, feature)
    twice = (MetricSpec("x", "X", PIXCORR), MetricSpec("x", "X", SSIM))
    with pytest.raises(ValueError, match="names a metric twice"):
        Protocol("p", 1, "", Resize(64, antialias=False), twice)


@pytest.mark.parametrize(("antialias", "size"), [(False, 24), (True, 24), (False, 100), (True, 64)])
def test_resize_is_torchvision(pictures, antialias, size):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    expected = resize(pictures[1], [size, size], InterpolationMode.BILINEAR, antialias=antialias)
    torch.testing.assert_close(Resize(size, antialias=antialias)(pictures[1]), expected)


def test_a_picture_given_many_times_passes_the_network_once():
    seen = []

    def forward(module: torch.nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(len(pixels))
        return {"sum": pixels.sum((2, 3))}

    network = dataclasses.replace(SCENE, taps=("sum",), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), forward=forward)
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    order = [0, 1, 0, 2, 1, 0, 0]
    features = Extractor(network, torch.nn.Conv2d(3, 3, 1), None, None, 2)(pictures[order], ["sum"])["sum"]
    torch.testing.assert_close(features, (pictures.float() / 255).sum((2, 3))[order])
    assert sum(seen) == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float64, 1e-5)])
def test_half_and_double_pictures_give_the_same_scores(pictures, scores, dtype, tolerance):
    again = score(pictures[0][:, 0].to(dtype), pictures[1].to(dtype), "scenes-1")
    for name in ("pixcorr", "ssim", "scene-mid-dist", "scene-high-dist"):
        assert again[name].value == pytest.approx(scores[name].value, abs=tolerance)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_near_and_on_the_result(pictures, scores, precision):
    reduced = score(pictures[0][:, 0], pictures[1], "scenes-1", precision=precision)
    assert (scores.precision, reduced.precision) == ("float32", precision)
    assert reduced.to_table().schema.metadata[b"precision"] == precision.encode()
    np.testing.assert_array_equal(reduced.per_image["ssim"], scores.per_image["ssim"])  # no network, no change
    distances = [name for name in COLUMNS if name.endswith("-dist")]
    for name in distances:
        assert reduced[name].value == pytest.approx(scores[name].value, abs=1e-3)
    assert any((reduced.per_image[name] != scores.per_image[name]).any() for name in distances)


def test_precisions_do_not_share_cached_features(pictures):
    cache = {}
    for precision in ("float32", "bfloat16"):
        cached = score(pictures[0][:, 0], pictures[1], "scenes-1", features=cache, precision=precision)
        plain = score(pictures[0][:, 0], pictures[1], "scenes-1", precision=precision)
        for name in COLUMNS:
            np.testing.assert_array_equal(cached.per_image[name], plain.per_image[name])
    before = _copied(cache)
    pixels = dataclasses.replace(find("scenes-1"), metrics=find("scenes-1").metrics[:2])
    score(pictures[0][:, 0], pictures[1], pixels, features=cache, precision="float16")
    assert cache.keys() == before.keys()  # no network saw them: shared


def test_unknown_precision_and_exchanged_sides_are_named(pictures):
    with pytest.raises(ValueError, match=r"unknown precision 'bf16', allowed: .*did you mean 'bfloat16'"):
        score(pictures[0], pictures[1], "scenes-1", precision="bf16")
    with pytest.raises(ValueError, match=r"\(64, 48\) high and wide, the truth \(48, 64\): height and width look"):
        score(pictures[0][..., :48], pictures[1][..., :48, :], "scenes-1")


def test_the_first_step_done_once_or_each_time_is_the_same(pictures, scores, monkeypatch):
    monkeypatch.setattr("eval._scoring.call.MOST_BYTES", 0)
    each_time = score(pictures[0][:, 0], pictures[1], "scenes-1")
    for name in COLUMNS:
        np.testing.assert_allclose(each_time.per_image[name], scores.per_image[name], atol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_is_torchvisions_and_does_not_depend_on_the_batch(antialias):
    images = torch.rand(5, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    step = Resize(67, antialias)
    resized = step(images)
    torch.testing.assert_close(resized, transforms.Resize((67, 67), antialias=antialias)(images), rtol=0, atol=1e-5)
    strided = images.repeat_interleave(2, 0)[::2]
    for size in (1, 2, 3):
        assert torch.equal(torch.cat([step(part) for part in strided.split(size)]), resized)
