"""IP-Adapter-Plus for Stable Diffusion v1: CLIP ViT-H/14, the resampler to 16 tokens, and the UNet's image attention.

The published file holds the resampler under `image_proj` and, under `ip_adapter`, two matrices for each of the UNet's
cross-attentions, numbered 1, 3, 5 ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.core.errors import CorruptFileError
from bench.generators._networks.published import TEXT_WIDTH, build, kind
from bench.generators._networks.stable_diffusion import Networks
from bench.generators._weights.checkpoints import Checkpoint, LocalCheckpoint
from bench.generators._weights.frozen import frozen, quiet, read_state, refuse_other_shapes, seeded

TOKENS = 16
IMAGE_SIZE = 224
DIM, DEPTH, FEED_FORWARD = 768, 4, 4
"""The published resampler's inner width, its layers, and how much wider their hidden layer is."""
HEAD = 64

CHECKPOINT = Checkpoint(
    name="ip-adapter",
    files=(
        "models/ip-adapter-plus_sd15.safetensors|models/ip-adapter-plus_sd15.bin",
        "models/image_encoder/config.json",
        "models/image_encoder/model.safetensors|models/image_encoder/pytorch_model.bin",
    ),
    licence="Apache-2.0",
    terms="Free to use and pass on with its notice; its image encoder is OpenCLIP's ViT-H/14 (MIT).",
    repository="h94/IP-Adapter",
)
_ADAPTER = "models/ip-adapter-plus_sd15"
_ENCODER = "models/image_encoder"
_TOWER = "CLIPVisionModelWithProjection"
_EMBEDDING = 1280
_VIT_H = {
    "hidden_size": _EMBEDDING,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": IMAGE_SIZE,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}

State = dict[str, dict[str, torch.Tensor]]
"""The adapter's weights: `image_proj` and `ip_adapter`, each by name."""


@dataclass(frozen=True)
class Adapter:
    """What makes image tokens.

    Attributes:
        encoder: `CLIPVisionModelWithProjection`.
        resampler: `IPAdapterPlusImageProjection`.
    """

    encoder: Any
    resampler: Any

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return image tokens `(B, 16, 768)` float32 of normalised pixels `(B, 3, 224, 224)`.

        They are made from the encoder's last but one hidden states; a picture of zeros gives the unconditional ones.
        """
        pixels = pixels.to(self.encoder.device, self.encoder.dtype)
        states = self.encoder(pixels, output_hidden_states=True).hidden_states[-2]
        made: torch.Tensor = self.resampler(states)
        return made.float()


def load(found: LocalCheckpoint, networks: Networks, scale: float) -> Adapter:
    """Load the published adapter into a UNet.

    Args:
        found: The checkpoint's files.
        networks: Stable Diffusion; its UNet gets the image attention.
        scale: Weight of the image attention.

    Raises:
        CorruptFileError: If a file cannot be read, or is not IP-Adapter-Plus for Stable Diffusion v1.
    """
    encoder = found.network(kind(_TOWER), _ENCODER, networks.unet.dtype, networks.device)
    name = next(each for each in found.files if each.startswith(_ADAPTER))
    state = _nested(read_state(found.folder / name))
    # The plain IP-Adapter has the same two parts without the resampler's queries; the file's name need not tell.
    if "latents" not in state["image_proj"]:
        raise CorruptFileError(f"{found.folder / name} is not an IP-Adapter-Plus: image_proj has no 'latents'")
    expected = shapes(networks.unet, encoder.config.hidden_size, int(state["image_proj"]["latents"].shape[-1]))
    own = {f"{part}.{key}": shape for part, names in expected.items() for key, shape in names.items()}
    came = {f"{part}.{key}": tuple(value.shape) for part, names in state.items() for key, value in names.items()}
    refuse_other_shapes(found.folder / name, own, came)
    return _joined(networks, encoder, state, scale)


def untrained(networks: Networks, scale: float) -> Adapter:
    """Return an adapter of the published size with seeded random weights, put into a UNet; see `load`."""
    with seeded():
        encoder = build_encoder()
        state = random_state(shapes(networks.unet, _EMBEDDING, DIM))
    return _joined(networks, frozen(encoder, networks.unet.dtype, networks.device), state, scale)


def build_encoder() -> Any:  # noqa: ANN401 - a transformers network
    """Return CLIP ViT-H/14's image tower at its published size, freshly initialised on the default device."""
    return build(_TOWER, _VIT_H)


def shapes(unet: nn.Module, embedding: int, dim: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the names and shapes of the published file.

    Args:
        unet: The UNet whose cross-attentions get image attention.
        embedding: Width of the image encoder's hidden states.
        dim: The resampler's inner width, a multiple of 64.
    """
    # Attention is as wide as the resampler: its number of heads is that width over 64.
    proj: dict[str, tuple[int, ...]] = {"latents": (1, TOKENS, dim)}
    proj |= {"proj_in.weight": (dim, embedding), "proj_in.bias": (dim,)}
    proj |= {"proj_out.weight": (TEXT_WIDTH, dim), "proj_out.bias": (TEXT_WIDTH,)}
    proj |= {"norm_out.weight": (TEXT_WIDTH,), "norm_out.bias": (TEXT_WIDTH,)}
    for layer in range(DEPTH):
        attention, feed = f"layers.{layer}.0", f"layers.{layer}.1"
        norms = (f"{attention}.norm1", f"{attention}.norm2", f"{feed}.0")
        proj |= {f"{norm}.{kind}": (dim,) for norm in norms for kind in ("weight", "bias")}
        proj |= {f"{attention}.to_q.weight": (dim, dim), f"{attention}.to_kv.weight": (2 * dim, dim)}
        proj |= {f"{attention}.to_out.weight": (dim, dim)}
        proj |= {f"{feed}.1.weight": (FEED_FORWARD * dim, dim), f"{feed}.3.weight": (dim, FEED_FORWARD * dim)}
    matrices: dict[str, tuple[int, ...]] = {}
    for place, width in enumerate(_cross_attention_widths(unet)):
        number = 2 * place + 1  # even numbers are the self-attentions, which have no weights of their own
        matrices |= {f"{number}.to_{kind}_ip.weight": (width, TEXT_WIDTH) for kind in ("k", "v")}
    return {"image_proj": proj, "ip_adapter": matrices}


def random_state(expected: Mapping[str, Mapping[str, tuple[int, ...]]]) -> State:
    """Return random weights of given shapes: neutral norms, no biases, matrices that keep their input's variance."""
    return {part: {name: _random(name, shape) for name, shape in names.items()} for part, names in expected.items()}


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) > 1:
        return torch.randn(shape) * shape[-1] ** -0.5
    return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)


def _cross_attention_widths(unet: Any) -> list[int]:  # noqa: ANN401 - a diffusers UNet
    """Return the widths of a UNet's cross-attentions in the order in which the published file numbers them."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [unet.get_submodule(name).to_q.out_features for name in names if name.endswith("attn2")]


def _nested(content: Mapping[str, object]) -> State:
    """Return an adapter's weights by part: safetensors files have the part in the name, older files a mapping each."""
    state: State = {"image_proj": {}, "ip_adapter": {}}
    for part in state:
        inner = content.get(part)
        flat = (
            inner
            if isinstance(inner, Mapping)
            else {
                name.removeprefix(f"{part}."): value for name, value in content.items() if name.startswith(f"{part}.")
            }
        )
        state[part] = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    return state


def _joined(networks: Networks, encoder: Any, state: State, scale: float) -> Adapter:  # noqa: ANN401
    """Put the image attention into the UNet through diffusers' own loader; return what makes its tokens."""
    from diffusers import StableDiffusionPipeline

    with quiet():
        # The loader is a method of pipelines; this one is never run.
        pipeline = StableDiffusionPipeline(
            vae=networks.vae,
            text_encoder=networks.text,
            tokenizer=networks.tokenizer,
            unet=networks.unet,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=encoder,
            requires_safety_checker=False,
        )
        pipeline.load_ip_adapter(state, subfolder="", weight_name="", low_cpu_mem_usage=False)
        pipeline.set_ip_adapter_scale(scale)
    unet = networks.unet
    resampler = unet.encoder_hid_proj.image_projection_layers[0]
    # The UNet would make tokens from image states at every step; here they are made once, or predicted.
    unet.encoder_hid_proj = nn.Identity()
    frozen(unet, unet.dtype, networks.device)
    return Adapter(encoder, frozen(resampler, unet.dtype, networks.device))
