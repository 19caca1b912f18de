"""reconbench-1: its stated choices, one by one, against the definitions and on degenerate systems."""

import numpy as np
import pytest
import torch
from eval_fakes import fake_features, level_pictures, with_fakes
from scipy.spatial.distance import correlation
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from eval.metrics.correlation_distance import CORRELATION_DISTANCE
from eval.metrics.perceptual_distance import PERCEPTUAL_DISTANCE
from eval.metrics.pixcorr import PIXCORR
from eval.metrics.retrieval import TOP_1_RETRIEVAL
from eval.pictures import Resize
from eval.protocols import reconbench_1
from eval.protocols.base import Feature, MetricSpec, find
from eval.suite import score

PROTOCOL = find("reconbench-1")


@pytest.fixture(scope="module")
def pictures():
    shown, truth = level_pictures(6, 2, size=512, truth_size=425, own=0.25)
    return shown.float() / 255, truth.float() / 255


@pytest.fixture(scope="module")
def scores(pictures):
    return score(*pictures, with_fakes(PROTOCOL), "untrained")


def _resized(images, step):
    return resize(images, [step.size, step.size], InterpolationMode(step.interpolation), antialias=True)


def test_pixel_metrics_leave_the_truth_alone(pictures, scores):
    shown, truth = pictures
    keywords = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pixcorr, ssim = np.zeros((2, 2, 6))
    for s in range(2):
        small = resize(shown[:, s], [425, 425], InterpolationMode.BILINEAR, antialias=True)
        for i, (x, y) in enumerate(zip(small.numpy(), truth.numpy(), strict=True)):
            pixcorr[s, i] = np.corrcoef(x.ravel(), y.ravel())[0, 1]
            ssim[s, i] = structural_similarity(
                rgb2gray(x.transpose(1, 2, 0)), rgb2gray(y.transpose(1, 2, 0)), **keywords
            )
    np.testing.assert_allclose(scores.per_image["pixcorr"], pixcorr.mean(0), atol=1e-5)
    np.testing.assert_allclose(scores.per_image["ssim"], ssim.mean(0), atol=1e-5)


@pytest.mark.parametrize("metric", [m for m in PROTOCOL.metrics if m.feature], ids=lambda m: m.name)
def test_feature_metrics_are_their_definitions(pictures, scores, metric):
    network, step = metric.feature.network, metric.feature.resize
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
    sides = [pictures[0][:, 0], pictures[0][:, 1], pictures[1]]
    features = [fake_features(network, metric.feature.tap, (_resized(s, step) - mean) / std) for s in sides]
    truth, values = features.pop().astype(np.float64), []
    for shown in features:
        if metric.formula is CORRELATION_DISTANCE:
            values.append([correlation(t, p) for t, p in zip(truth, shown, strict=True)])
        elif metric.formula is PERCEPTUAL_DISTANCE:
            values.append(((shown - truth) ** 2).sum(1))
        else:
            r = np.corrcoef(truth, shown)[:6, 6:]
            own = np.diag(r)[:, None] if metric.reads_out.transpose else np.diag(r)
            values.append((r < own).sum(axis=1 if metric.reads_out.transpose else 0) / 5)
    np.testing.assert_allclose(scores.per_image[metric.name], np.mean(values, axis=0), rtol=1e-4, atol=1e-5)


def test_columns_and_what_counts():
    assert [m.name for m in PROTOCOL.metrics if m.ranked] == [
        "pixcorr", "ssim", "lpips", "alex2", "alex5", "inception", "clip", "effnet-v2", "swav",
    ]  # fmt: skip
    assert [m.name for m in PROTOCOL.metrics if not m.ranked] == [
        "alex2-transposed", "alex5-transposed", "inception-transposed", "clip-transposed", "effnet-v1",
        "retrieval-image", "retrieval-brain", "brain-correlation",
    ]  # fmt: skip
    steps = {m.feature.resize if m.feature else m.resize for m in PROTOCOL.metrics} - {None}
    assert all(isinstance(step, Resize) and step.antialias for step in steps)
    assert PROTOCOL.first is None
    assert {m.samples for m in PROTOCOL.metrics} == {"mean-score"}
    assert all(m.reads_out.ties == "half" for m in PROTOCOL.metrics if m.kind == "identification")
    assert PROTOCOL["retrieval-image"].reads_out.given == "brain"
    assert PROTOCOL["retrieval-brain"].reads_out.given == "image"
    for word in (
        "Pictures",
        "SSIM",
        "Networks",
        "Identification",
        "EfficientNets",
        "Retrieval",
        "blending",
        "selection",
    ):
        assert word in reconbench_1.__doc__


def test_truth_is_perfect(pictures):
    perfect = score(pictures[1], pictures[1], with_fakes(PROTOCOL), "untrained")
    expected = [1.0 if metric.higher_is_better else 0.0 for metric in PROTOCOL.metrics[:14]]
    assert [m.value for m in perfect.metrics[:14]] == pytest.approx(expected, abs=1e-6)


def test_one_picture_for_everything_is_at_chance(pictures):
    same = pictures[0][:1, :1].expand(6, 1, 3, 512, 512)
    scores = score(same, pictures[1], with_fakes(PROTOCOL), "untrained")
    for metric in PROTOCOL.metrics:
        if metric.kind == "identification":
            assert scores[metric.name].value == pytest.approx(0.5), metric.name


def test_order_and_batches_change_nothing(pictures, scores):
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    again = score(pictures[0][order], pictures[1][order], with_fakes(PROTOCOL), "untrained", batch=4)
    for name, values in scores.per_image.items():
        np.testing.assert_allclose(again.per_image[name], values[order.numpy()], rtol=1e-4, atol=1e-6)


def test_the_parquet_table_has_every_computed_column(scores):
    table = scores.to_table()
    assert table.column_names == ["image", *(m.name for m in PROTOCOL.metrics[:14])]
    assert scores.untrained
    assert {key.decode() for key in table.schema.metadata} >= {"protocol", "weights.lpips_alex"}


def test_metrics_that_make_no_sense_are_refused():
    feature = Feature(PROTOCOL["alex2"].feature.network, "features.4", None)
    with pytest.raises(ValueError, match=r"samples of pixcorr take \['best-sample', 'mean-score'\], not mean-feature"):
        MetricSpec("x", "X", PIXCORR, samples="mean-feature")
    with pytest.raises(ValueError, match="not mean-comparison"):
        MetricSpec("x", "X", CORRELATION_DISTANCE, feature, samples="mean-comparison")
    with pytest.raises(ValueError, match="pixcorr is read out by Readout, not Retrieval"):
        MetricSpec("x", "X", PIXCORR, readout=PROTOCOL["retrieval-image"].readout)
    with pytest.raises(ValueError, match=r"also needs \['predictions', 'true latents'\]"):
        MetricSpec("x", "X", TOP_1_RETRIEVAL)
    with pytest.raises(ValueError, match=r"'x' resizes nothing: reconstructions and truth of \(8, 8\) and \(9, 9\) px"):
        protocol = type(PROTOCOL)("p", 1, "", None, (MetricSpec("x", "X", PIXCORR),))
        score(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 9, 9), protocol)
