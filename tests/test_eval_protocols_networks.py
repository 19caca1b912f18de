"""The networks that came with the protocols: published sizes, layers, and LPIPS against torchmetrics' own."""

import numpy as np
import pytest
import torch
from clip.model import VisionTransformer
from eval_fakes import level_pictures
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import VisionTransformer as PublishedViT
from torchvision.models import alexnet as published_alexnet
from torchvision.models.feature_extraction import create_feature_extractor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from eval.metrics.perceptual_distance import perceptual_distance
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks.clip_vit_l14 import CLIP_VIT_L14, CLIP_VIT_L14_HIDDEN
from eval.networks.lpips_alex import LPIPS_ALEX
from eval.networks.torchvision import ALEXNET_POOLED, EFFICIENTNET_V2_S, VIT_H_14
from eval.pictures import Resize

CPU = torch.device("cpu")
BLOCKS = 13


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


def _transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tower's entries by the names that transformers gives them; queries, keys and values lie apart there."""
    named = {
        "vision_model.embeddings.patch_embedding.weight": state["conv1.weight"],
        "vision_model.embeddings.class_embedding": state["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "visual_projection.weight": state["proj"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        named[f"vision_model.pre_layrnorm.{kind}"] = state[f"ln_pre.{kind}"]
        named[f"vision_model.post_layernorm.{kind}"] = state[f"ln_post.{kind}"]
        for block in range(BLOCKS):
            ours, theirs = f"transformer.resblocks.{block}", f"vision_model.encoder.layers.{block}"
            parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                named[f"{theirs}.self_attn.{name}.{kind}"] = part
            for name, other in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                named[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    return named


def test_clip_features_are_those_of_transformers():
    """A narrow tower of the same class, and transformers' own CLIP with its weights: hidden states as counted there."""
    torch.manual_seed(0)
    tower = VisionTransformer(28, patch_size=14, width=32, layers=BLOCKS, heads=2, output_dim=8).eval()
    for norm in (tower.ln_pre, tower.ln_post):  # fresh ones do nothing: whether they are applied would not show
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=BLOCKS, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=8, hidden_act="quick_gelu", attn_implementation="eager",
    )  # fmt: skip
    reference = CLIPVisionModelWithProjection(config).eval()
    missing, unknown = reference.load_state_dict(_transformers_names(tower.state_dict()), strict=False)
    assert not unknown and all("position_ids" in name for name in missing)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        expected = reference(pixels, output_hidden_states=True)
        tapped = CLIP_VIT_L14_HIDDEN.forward(tower, pixels)
        plain = CLIP_VIT_L14.forward(tower, pixels)
    assert set(plain) == set(CLIP_VIT_L14.taps)
    assert set(tapped) == set(CLIP_VIT_L14_HIDDEN.taps)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(plain["encode_image"], expected.image_embeds, **close)
    torch.testing.assert_close(tapped["encode_image"], expected.image_embeds, **close)
    for number in (6, 12):
        torch.testing.assert_close(tapped[f"hidden.{number}"], expected.hidden_states[number], **close)


def test_vit_probabilities_are_the_softmax_of_its_head():
    """A narrow network of the same class; its logits by a hook on the layer that gives them."""
    torch.manual_seed(0)
    narrow = PublishedViT(28, 14, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=50).eval()
    nn.init.normal_(narrow.heads.head.weight)  # torchvision begins with zeros, which give every class the same
    logits = []
    narrow.heads.head.register_forward_hook(lambda _, __, output: logits.append(output.detach().double().numpy()))
    found = VIT_H_14.forward(narrow, torch.randn(3, 3, 28, 28))["probabilities"].detach().numpy()
    shares = np.exp(logits[0] - logits[0].max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), rtol=1e-4)
    assert found.shape == (3, 50) and found.std() > 1e-3


def test_scale_comes_before_mean_and_deviation():
    network = EFFICIENTNET_V2_S
    extract = Extractor(network, nn.Identity(), None, None, 4, scale=255.0)
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 7), dtype=np.uint8))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (network.mean, network.std))
    torch.testing.assert_close(extract._pixels(levels), (levels.float() - mean) / std, rtol=1e-4, atol=1e-3)
