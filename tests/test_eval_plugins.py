"""Metrics of somebody's own beside a protocol, and SEED on small random checkpoints of its real classes."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from eval_fakes import level_pictures
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GroundingDinoImageProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from eval.metrics.correlation_distance import correlation_distance
from eval.networks import _weights as weights
from eval.networks._features import Extractor
from eval.networks._weights import MissingWeightsError
from eval.networks.torchvision import EFFICIENTNET_B1_V2
from eval.pictures import Resize
from eval.plugins import base, seed
from eval.plugins.base import Column, Inputs, Plugin
from eval.plugins.seed.captions import Captioner, Sentences
from eval.plugins.seed.objects import CLASSES, LEAST_AREA, THRESHOLDS, ObjectDetector, _best, object_f1
from eval.suite import score

CPU = torch.device("cpu")
SHARPNESS = """
import torch
from eval.plugins.base import Column, Inputs, Plugin

def compute(inputs):
    shown = inputs.reconstructions.float()
    return {"steps": shown.diff(dim=-1).abs().mean((2, 3, 4)).T}

STEPS = Plugin("mine", version=3, summary="Mean step.", columns=(Column("steps", "Steps", False),), compute=compute)
OTHER = 5
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "outside_package.py").write_text(SHARPNESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "outside_package:STEPS"
    sys.modules.pop("outside_package", None)


def test_a_metric_of_another_package_stands_beside_the_protocols(package):
    shown, truth = level_pictures(6, 2)
    plain, scores = score(shown, truth, "scenes-1"), score(shown, truth, "scenes-1", plugins=[package])
    assert scores.metrics[:-1] == plain.metrics
    expected = shown.float().diff(dim=-1).abs().mean((2, 3, 4)).mean(1)
    np.testing.assert_allclose(scores.per_image["steps"], expected, rtol=1e-6)
    result = scores["steps"]
    assert result.value == pytest.approx(float(expected.mean()))
    assert (result.n, result.higher_is_better, result.status) == (6, False, "ok")
    assert result.interval[0] <= result.value <= result.interval[1]
    assert scores.plugins == {"mine": 3}
    table = scores.to_table()
    assert table.column_names[-1] == "steps"
    assert table.schema.metadata[b"plugin.mine"] == b"3"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sed", "unknown plug-in 'sed', allowed: seed; did you mean 'seed'.*others as module:OBJECT"),
        ("no_such_module:X", "No module named 'no_such_module'; the module must be installed or on PYTHONPATH"),
        ("outside_package:OTHER", "OTHER of outside_package is int, not a Plugin"),
        ("outside_package:MISSING", "MISSING of outside_package is NoneType, not a Plugin"),
    ],
)
def test_unknown_plug_ins_are_named(package, reference, message):
    with pytest.raises(ValueError, match=message):
        base.find(reference)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other": torch.zeros(1, 4)}, r"declares \['x'\] and gave \['other'\]"),
        ({"x": torch.zeros(4)}, r"gave x of shape \(4,\), \(S, N\) is \(1, 4\)"),
        ({"x": torch.tensor([[0, 0, float("nan"), 0]])}, "gave x of image 2 that is not finite"),
    ],
)
def test_what_a_plug_in_gives_is_checked(given, message):
    plugin = Plugin("bad", 1, "", (Column("x", "X"),), lambda inputs: given)
    shown, truth = level_pictures(4, 1)
    with pytest.raises(ValueError, match=message):
        score(shown, truth, "scenes-1", plugins=[plugin])


def test_names_do_not_collide():
    plugin = Plugin("bad", 1, "", (Column("ssim", "X"),), lambda inputs: {"ssim": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="metric 'ssim' stands twice: in scenes-1"):
        score(*level_pictures(4, 1), "scenes-1", plugins=[plugin])


def test_every_plug_in_of_the_folder_is_complete():
    for name in base.names():
        plugin = base.find(name)
        assert plugin.name == name
        assert plugin.version >= 1
        assert plugin.summary.endswith(".")
        assert all(model.terms and "/" in model.repository for model in plugin.models)


# -- SEED --------------------------------------------------------------------------------------------------------------


def published_object_f1(shown, truth):
    """Written from the paper's definition, a picture and a threshold at a time: sets of classes, plain loops."""
    values = []
    for ours, theirs in zip(shown, truth, strict=True):
        recalls, precisions = [], []
        for threshold in THRESHOLDS:
            found, there = ({c for c, s in enumerate(side) if s >= threshold} for side in (ours, theirs))
            if there:
                recalls.append(len(found & there) / len(there))
            if found:
                precisions.append(len(found & there) / len(found))
        r, p = (float(np.mean(each)) if each else 1.0 for each in (recalls, precisions))
        values.append(0.0 if r + p == 0 else 2 * r * p / (r + p))
    return values


def test_object_f1_is_the_published_loop():
    rng = np.random.default_rng(0)
    shown, truth = (np.where(rng.random((20, 6)) < 0.5, -np.inf, rng.random((20, 6))) for _ in range(2))
    truth[:5] = shown[:5]
    shown[7], truth[8] = -np.inf, -np.inf
    shown[9], truth[9] = -np.inf, -np.inf
    values = object_f1(torch.from_numpy(shown), torch.from_numpy(truth)).numpy()
    np.testing.assert_allclose(values, published_object_f1(shown, truth), atol=1e-12)
    assert (values[:5] == 1).all()
    assert values[9] == 1
    assert len(np.unique(values)) > 10


def test_small_boxes_and_improbable_pairs_do_not_count():
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.8], [0.4, 0.3]]])
    best = _best(scores, torch.tensor([[LEAST_AREA - 1, LEAST_AREA, 100.0]]))
    assert best.tolist() == torch.tensor([[0.4, 0.8]]).tolist()
    many = torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0))
    kept = many.flatten().sort(descending=True).values[299]
    expected = many.masked_fill(many < kept, -torch.inf).amax(1)
    assert torch.equal(_best(many, torch.full((1, 200), 100.0)), expected)


def tokenizer(folder, extra=()):
    """A WordPiece tokenizer of a few hundred words, saved as a checkpoint holds it."""
    letters = [f"{mark}{chr(97 + k)}" for k in range(26) for mark in ("", "##")]
    words = {part for name in CLASSES for part in name.split("_")}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "_", *letters, *sorted(words - set(letters))]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **special).save_pretrained(folder)
    return len(vocabulary)


BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random checkpoints of the true classes, in the layout of the hub; and EfficientNet's state dict."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    words = tokenizer(folder / seed.DETECTOR.name)
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_indices=[2, 3, 4]
    )
    small = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 20}
    config = MMGroundingDinoConfig(
        backbone_config=swin, text_config=BertConfig(vocab_size=words, **BERT), d_model=32, **small,
        encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    MMGroundingDinoForObjectDetection(config).save_pretrained(folder / seed.DETECTOR.name)
    size = {"shortest_edge": 128, "longest_edge": 192}
    GroundingDinoImageProcessor(size=size).save_pretrained(folder / seed.DETECTOR.name)
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    words = tokenizer(folder / seed.CAPTIONER.name)
    git = GitConfig(vision_config=vision, vocab_size=words, bos_token_id=2, eos_token_id=3, pad_token_id=0, **BERT)
    GitForCausalLM(git).save_pretrained(folder / seed.CAPTIONER.name)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder / seed.CAPTIONER.name)
    words = tokenizer(folder / seed.SENTENCES.name)
    BertModel(BertConfig(vocab_size=words, **BERT)).save_pretrained(folder / seed.SENTENCES.name)
    torch.save(weights.load(EFFICIENTNET_B1_V2, "untrained", CPU).state_dict(), folder / "efficientnet_b1_v2.pth")
    return folder


def test_seed_is_the_mean_of_its_parts(checkpoints):
    shown, truth = level_pictures(3, 2, size=64, truth_size=64)
    scores = score(shown, truth, "scenes-1", weights=checkpoints, plugins=["seed"])
    parts = [scores.per_image[f"seed-{part}"] for part in ("objects", "captions", "effnet")]
    np.testing.assert_allclose(scores.per_image["seed"], np.mean(parts, axis=0), atol=1e-12)
    assert {f"seed/{m.name}" for m in seed.PLUGIN.models} | {"seed/efficientnet_b1_v2"} <= set(scores.weights)
    assert all(len(digest) == 64 for digest in scores.weights.values())
    module = weights.load(EFFICIENTNET_B1_V2, checkpoints, CPU)
    extract = Extractor(EFFICIENTNET_B1_V2, module, None, Resize(255, antialias=True), 2)
    features = [extract(side, ["avgpool"])["avgpool"] for side in (shown[:, 0], shown[:, 1], truth)]
    expected = 1 - (correlation_distance(features[0], features[2]) + correlation_distance(features[1], features[2])) / 2
    np.testing.assert_allclose(scores.per_image["seed-effnet"], expected, atol=1e-6)


def test_the_truth_itself_scores_one(checkpoints):
    _, truth = level_pictures(2, 1, truth_size=64)
    scores = score(truth, truth, "scenes-1", weights=checkpoints, plugins=["seed"])
    assert [scores[c.name].value for c in seed.PLUGIN.columns] == pytest.approx([1, 1, 1, 1], abs=1e-5)


def test_detections_are_the_models_own(checkpoints):
    """Each class' score is the mean over its own tokens' probabilities, with the text tokenized name by name."""
    images = level_pictures(2, 1, truth_size=64)[1].float() / 255
    detector = ObjectDetector(checkpoints / seed.DETECTOR.name, CPU)
    assert torch.allclose(detector.classes.sum(0), torch.ones(len(CLASSES)))
    assert len(CLASSES) == 82
    ids, place = detector.tokens["input_ids"][0].tolist(), 1
    words = Tokenizer.from_file(str(checkpoints / seed.DETECTOR.name / "tokenizer.json"))
    for number, name in enumerate(CLASSES):
        own = words.encode(name, add_special_tokens=False).ids
        assert ids[place : place + len(own)] == own
        assert detector.classes[:, number].nonzero().flatten().tolist() == list(range(place, place + len(own)))
        place += len(own) + 1  # the full stop
    both = detector(images)
    assert both.shape == (2, 82)
    torch.testing.assert_close(both[1:], detector(images[1:]), rtol=1e-4, atol=1e-5)  # alone as in a batch


def test_captions_and_sentences(checkpoints):
    images = level_pictures(3, 1, truth_size=64)[1].float() / 255
    captions = Captioner(checkpoints / seed.CAPTIONER.name, CPU)(images)
    assert [type(caption) for caption in captions] == [str] * 3
    sentences = Sentences(checkpoints / seed.SENTENCES.name, CPU)
    alone, padded = sentences(["a dog"]), sentences(["a dog", "a person on a surfboard near a boat"])
    torch.testing.assert_close(alone[0], padded[0], rtol=1e-4, atol=1e-5)  # padding changes nothing
    torch.testing.assert_close(padded.norm(dim=1), torch.ones(2))


def test_missing_models_say_what_to_put_where(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    shown, truth = level_pictures(3, 1)
    (tmp_path / "efficientnet_b1_v2.pth").symlink_to(checkpoints / "efficientnet_b1_v2.pth")
    with pytest.raises(MissingWeightsError) as error:
        score(shown, truth, "scenes-1", weights=tmp_path, plugins=["seed"])
    for part in ("openmmlab-community/mm_grounding_dino_large_all", "Apache-2.0", "model.safetensors",
                 str(tmp_path / seed.DETECTOR.name), str(tmp_path / "home")):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(MissingWeightsError, match="mm_grounding_dino_large_all has no untrained form"):
        score(shown, truth, "scenes-1", weights="untrained", plugins=["seed"])


def test_a_model_in_the_hubs_cache_is_found(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots").mkdir()
    (place / "snapshots" / "abc").symlink_to(checkpoints / seed.SENTENCES.name)
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    assert base.locate(seed.SENTENCES, None) == place / "snapshots" / "abc"
    changed = dataclasses.replace(seed.PLUGIN, models=(seed.SENTENCES,), networks=())
    before = changed.digests(None)
    copy = tmp_path / "given" / seed.SENTENCES.name
    copy.mkdir(parents=True)
    for file in seed.SENTENCES.files:
        (copy / file).write_bytes((checkpoints / seed.SENTENCES.name / file).read_bytes())
    assert changed.digests(tmp_path / "given") == before
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))
    assert changed.digests(tmp_path / "given") != before


def test_inputs_are_what_was_given():
    seen = []

    def compute(inputs: Inputs) -> dict[str, torch.Tensor]:
        seen.append(inputs)
        return {"x": torch.zeros(inputs.reconstructions.shape[1], len(inputs.truth))}

    shown, truth = level_pictures(4, 3, size=40, truth_size=56)
    score(shown, truth, "scenes-1", plugins=[Plugin("x", 1, "", (Column("x", "X"),), compute)], batch=5)
    assert torch.equal(seen[0].reconstructions, shown)
    assert torch.equal(seen[0].truth, truth)
    assert (seen[0].batch, seen[0].device) == (5, CPU)
