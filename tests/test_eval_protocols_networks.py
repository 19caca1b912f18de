"""The networks that came with the protocols: published sizes, layers, and LPIPS against torchmetrics' own."""

import numpy as np
import pytest
import torch
from clip.model import VisionTransformer
from eval_fakes import level_pictures
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet as published_alexnet
from torchvision.models.feature_extraction import create_feature_extractor

from eval.metrics.perceptual_distance import perceptual_distance
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks.clip_vit_l14 import CLIP_VIT_L14_HIDDEN, HIDDEN
from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.torchvision import ALEXNET_POOLED, EFFICIENTNET_V2_S, VIT_H_14
from eval.pictures import Resize

CPU = torch.device("cpu")


@pytest.mark.networks
@pytest.mark.parametrize(
    ("network", "size", "widths"),
    [
        (ALEXNET_POOLED, 299, [192 * 17 * 17, 256 * 8 * 8, 4096]),
        (CLIP_VIT_L14_HIDDEN, 224, [257 * 1024, 257 * 1024, 768]),
        (EFFICIENTNET_V2_S, 512, [1280]),
        (LPIPS_ALEX, 256, [640_128]),
        (VIT_H_14, 518, [1000]),
    ],
)
def test_features_have_the_published_widths(network, size, widths):
    """On meta tensors: shapes without weights or arithmetic."""
    with torch.device("meta"):
        built = network.build().eval()
        for name in network.unused:
            built.set_submodule(name, nn.Identity())
        tapped = network.forward(built, torch.empty(2, 3, size, size))
    assert [tapped[tap].flatten(1).shape[1] for tap in network.taps] == widths


def test_pooled_taps_are_torchvisions_layers_of_that_name(tmp_path):
    torch.manual_seed(0)
    original = published_alexnet(weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "alexnet.pth")
    pixels = torch.randn(1, 3, 80, 80)
    ours = ALEXNET_POOLED.forward(weights.load(ALEXNET_POOLED, tmp_path, CPU), pixels)
    layers = {name: name for name in ALEXNET_POOLED.taps}
    expected = create_feature_extractor(original, layers, suppress_diff_warning=True)(pixels)
    for name in layers:
        torch.testing.assert_close(ours[name], expected[name])


def test_lpips_is_torchmetrics(tmp_path):
    """AlexNet's convolutions of a seed in both, the shipped heads in both."""
    torch.manual_seed(0)
    published_weights = published_alexnet(weights=None).state_dict()
    torch.save(published_weights, tmp_path / "alexnet.pth")
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    for name, value in published_weights.items():
        if name.startswith("features."):
            number = int(name.split(".")[1])
            slice_name = next(
                s for s in range(1, 6) if str(number) in dict(getattr(reference.net, f"slice{s}").named_children())
            )
            reference.net.get_parameter(f"slice{slice_name}.{name.removeprefix('features.')}").copy_(value)
    shown, truth = level_pictures(3, 1, size=96, truth_size=96)
    x, y = shown[:, 0].float() / 255, truth.float() / 255
    expected = reference(x, y, normalize=True).flatten()
    module = weights.load(LPIPS_ALEX, tmp_path, CPU)
    extract = Extractor(LPIPS_ALEX, module, None, Resize(96, antialias=True), 2)
    features = [extract(side, ["weighted"])["weighted"] for side in (x, y)]
    torch.testing.assert_close(perceptual_distance(*features).float(), expected, rtol=1e-4, atol=1e-7)
    assert expected.min() > 1e-4
    batch = extract.one_batch(x[:2], "weighted")
    torch.testing.assert_close(batch, features[0][:2])


def test_clip_hidden_states_are_those_of_the_tower():
    """A narrow tower of the same class: what its blocks give, and the embedding of its own forward pass."""
    torch.manual_seed(0)
    tower = VisionTransformer(input_resolution=28, patch_size=14, width=32, layers=13, heads=2, output_dim=8).eval()
    caught = {}
    for number, block in enumerate(tower.transformer.resblocks, start=1):
        block.register_forward_hook(lambda _, __, output, number=number: caught.__setitem__(number, output))
    pixels = torch.randn(2, 3, 28, 28)
    expected = tower(pixels)
    hidden = {number: caught[number].permute(1, 0, 2) for number in HIDDEN}
    tapped = CLIP_VIT_L14_HIDDEN.forward(tower, pixels)
    torch.testing.assert_close(tapped["encode_image"], expected)
    for number, states in hidden.items():
        torch.testing.assert_close(tapped[f"hidden.{number}"], states)
        assert states.shape == (2, 5, 32)


def test_scale_comes_before_mean_and_deviation():
    network = EFFICIENTNET_V2_S
    extract = Extractor(network, nn.Identity(), None, None, 4, scale=255.0)
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), dtype=np.uint8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    torch.testing.assert_close(extract._pixels(levels), (levels.float() - mean) / std, rtol=1e-4, atol=1e-3)
