"""Pictures made elsewhere: every kind of file, named orders, the check of the order, and the stage's command line."""

import hashlib
import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision
from PIL import Image

from bench import score as stage
from bench.core.errors import BadDataError, CorruptFileError, MissingDataError, UnknownNameError
from bench.core.storage import Folder
from bench.data.datasets.nsd.design import Design, read_design
from bench.data.shard_set import open_data, pictures
from bench.data.shards.pictures import read_images
from bench.records.record import read_records
from bench.scoring.outside import files as outside
from bench.scoring.outside import order_check, orders
from bench.scoring.outside.inputs import ScoreArguments, prepare_inputs
from bench.scoring.outside.order_check import Judge, check_order, judge_for
from eval.protocols.base import find
from eval.suite import score as score_pictures

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (12, 3, 8, 10), dtype=np.uint8)


def png(path, picture, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.transpose(1, 2, 0)).convert(mode).save(path)


def folder_of(path, values, name="{}.png"):
    for place, picture in enumerate(values):
        png(path / name.format(place), picture)
    return path


# -- Reading -----------------------------------------------------------------------------------------------------------


def written(tmp_path, kind, values):
    """The same values in a file or folder of some kind."""
    if kind == "folder":
        return folder_of(tmp_path / "pictures", values)
    path = tmp_path / f"pictures.{kind}"
    if kind in ("pt", "pth"):
        torch.save(torch.from_numpy(values), path)
    elif kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, recons=values)
    else:
        with h5py.File(path, "w") as file:
            file["group/recons"] = values
    return path


@pytest.mark.parametrize("kind", ["folder", "pt", "pth", "npy", "npz", "h5", "hdf5"])
def test_every_kind_gives_the_same_pictures(tmp_path, kind):
    found = outside.read_pictures(written(tmp_path, kind, PIXELS))
    np.testing.assert_array_equal(found.values, PIXELS[:, None])
    assert found.digest == outside.Pictures(PIXELS[:, None]).digest
    assert found.names == (tuple(map(str, range(12))) if kind == "folder" else ())
    assert not found.rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_floating_point_is_rounded_to_8_bits(tmp_path, dtype):
    values = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.save(values, tmp_path / "x.pt")
    found = outside.read_pictures(tmp_path / "x.pt")
    assert found.rounded
    np.testing.assert_array_equal(found.values[:, 0], np.rint(values.float().numpy() * 255).astype(np.uint8))


def test_samples_stay_apart(tmp_path):
    values = PIXELS.reshape(4, 3, 3, 8, 10)
    np.save(tmp_path / "x.npy", values)
    np.testing.assert_array_equal(outside.read_pictures(tmp_path / "x.npy").values, values)
    for sample in range(3):
        folder_of(tmp_path / "samples" / f"sample{sample}", values[:, sample], "image-{}.png")
    found = outside.read_pictures(tmp_path / "samples")
    np.testing.assert_array_equal(found.values, values)
    assert found.names == ("image-0", "image-1", "image-2", "image-3")


def test_files_of_a_folder_are_read_in_natural_order(tmp_path):
    folder_of(tmp_path, PIXELS, "recon_{}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [name.removeprefix("recon_") for name in outside.read_pictures(tmp_path).names] == list(map(str, range(12)))


def test_jpeg_is_read(tmp_path):
    flat = np.full((3, 16, 16), 90, np.uint8)
    png(tmp_path / "a.jpg", flat)
    assert np.abs(outside.read_pictures(tmp_path).values.astype(int) - 90).max() <= 1


def test_one_array_of_several_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", recons=PIXELS, other=PIXELS[:1])
    torch.save({"recons": torch.from_numpy(PIXELS), "other": torch.zeros(1)}, tmp_path / "x.pt")
    for name in ("x.npz", "x.pt"):
        np.testing.assert_array_equal(outside.read_pictures(tmp_path / name, "recons").values[:, 0], PIXELS)
        with pytest.raises(BadDataError, match=r"holds 2 arrays \(recons, other\): name one with --key"):
            outside.read_pictures(tmp_path / name)
        with pytest.raises(UnknownNameError, match=r"unknown array 'recon'.*Did you mean 'recons'"):
            outside.read_pictures(tmp_path / name, "recon")


def changed(place, value):
    values = PIXELS.astype(np.float32) / 255
    values[place] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed((7, 0, 0, 0), np.nan), r"x\.npy: image 7 has NaN"),
        (changed((3, 0, 0, 0), -0.5), "image 3 has values from -0.5 to"),
        (changed((2, 0, 0, 0), 1.5), "image 2 has values from 0 to 1.5|image 2 has values"),
        (PIXELS.astype(np.float32), "image 0 has values .*divide 0-255 values by 255 first"),
        (PIXELS.astype(np.int32), "got int32"),
        (PIXELS.transpose(0, 2, 3, 1), r"got shape \(12, 8, 10, 3\); the channels stand last"),
        (PIXELS[:, :1], r"got shape \(12, 1, 8, 10\)"),
        (PIXELS[0], r"got shape \(3, 8, 10\)"),
        (PIXELS[:0], r"got shape \(0, 3, 8, 10\)"),
        (np.zeros((1, 128, 3, 2, 2), np.uint8), "128 samples an image, at most 127"),
    ],
)
def test_wrong_values_are_refused(tmp_path, values, message):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(BadDataError, match=message):
        outside.read_pictures(tmp_path / "x.npy")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_that_are_not_rgb_are_refused(tmp_path, mode):
    png(tmp_path / "0.png", PIXELS[0])
    png(tmp_path / "1.png", PIXELS[1], mode)
    with pytest.raises(BadDataError, match=rf"1\.png is of mode {mode}; RGB"):
        outside.read_pictures(tmp_path)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    png(tmp_path / "sizes" / "0.png", PIXELS[0])
    png(tmp_path / "sizes" / "1.png", PIXELS[1][:, :4])
    with pytest.raises(BadDataError, match=r"1\.png is 10x4, 0\.png is 10x8: all pictures of a folder need one size"):
        outside.read_pictures(tmp_path / "sizes")
    folder_of(tmp_path / "samples" / "a", PIXELS[:3])
    folder_of(tmp_path / "samples" / "b", PIXELS[:2])
    with pytest.raises(BadDataError, match="does not hold the same file names and sizes"):
        outside.read_pictures(tmp_path / "samples")
    png(tmp_path / "samples" / "c.png", PIXELS[0])
    with pytest.raises(BadDataError, match="holds pictures and folders"):
        outside.read_pictures(tmp_path / "samples")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDataError, match=r"empty holds no \.jpeg, \.jpg, \.png"):
        outside.read_pictures(tmp_path / "empty")
    with pytest.raises(MissingDataError, match="no file or folder"):
        outside.read_pictures(tmp_path / "none")


@pytest.mark.parametrize("name", ["x.pt", "x.npy", "x.npz", "x.h5", "folder/x.png"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    with pytest.raises(CorruptFileError, match=re.escape(path.name)):
        outside.read_pictures(path.parent if name.startswith("folder") else path)


def test_truncated_pictures_are_named(tmp_path):
    png(tmp_path / "0.png", RNG.integers(0, 256, (3, 64, 64), dtype=np.uint8))
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=r"0\.png cannot be read as PNG or JPEG"):
        outside.read_pictures(tmp_path)


class Evil:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"x": Evil(tmp_path / "owned")}, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", np.array([Evil(tmp_path / "owned")], dtype=object), allow_pickle=True)
    for name in ("x.pt", "x.npy"):
        with pytest.raises(CorruptFileError, match=re.escape(name)):
            outside.read_pictures(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_other_kinds_of_file_are_named_with_what_is_allowed(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"")
    with pytest.raises(UnknownNameError, match=r"unknown kind of file '\.tif'.*\.hdf5"):
        outside.read_pictures(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n1\n", r"stimulus 1 stands there 2 times \(1 such ids\)"),
        ("1\n-2\n", "line 2: one whole number from 0 is needed, got '-2'"),
        ("1\n\n2.5\n", "line 3"),
        ("", "stimulus numbers from 0 are needed, got none"),
    ],
)
def test_bad_ids_are_refused(tmp_path, text, message):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(BadDataError, match=message):
        outside.read_ids(tmp_path / "ids.txt")


def test_ids_from_text_numpy_and_file_names(tmp_path):
    (tmp_path / "ids.txt").write_text("7\n3\n\n11\n")
    np.save(tmp_path / "ids.npy", np.array([7, 3, 11], np.uint16))
    assert outside.read_ids(tmp_path / "ids.txt") == outside.read_ids(tmp_path / "ids.npy") == (7, 3, 11)
    assert outside.ids_in_names(["subj01_007", "subj01_3"], "x") == (7, 3)
    with pytest.raises(BadDataError, match="the name 'cat' holds no stimulus number"):
        outside.ids_in_names(["1", "cat"], "x")
    np.save(tmp_path / "floats.npy", np.array([1.0]))
    with pytest.raises(BadDataError, match="ids are whole numbers, got float64"):
        outside.read_ids(tmp_path / "floats.npy")
    with pytest.raises(MissingDataError, match="no file"):
        outside.read_ids(tmp_path / "none.txt")


# -- Named orders ------------------------------------------------------------------------------------------------------


def design(late=18):
    """A design of NSD's size; the last `late` shared pictures first appear after session 37."""
    rng = np.random.default_rng(9)
    early = np.concatenate([np.arange(1000 - late), rng.integers(1000, 10000, 27750 - (1000 - late))])
    rest = np.concatenate([np.arange(1000 - late, 1000), rng.integers(0, 10000, 2250 - late)])
    order = np.concatenate([rng.permutation(early), rng.permutation(rest)])
    numbers = rng.permutation(73000)
    images = np.stack([np.r_[numbers[:1000], rng.permutation(numbers[1000:])[:9000]] for _ in range(8)])
    return Design(order, images, rng.permutation(numbers[:1000]), np.arange(41) * 750)


def slow_first_appearance(given, sessions):
    shared, seen = set(given.shared.tolist()), []
    for trial in range(sessions * 750):
        stimulus = int(given.pictures[0][given.order[trial]])
        if stimulus in shared and stimulus not in seen:
            seen.append(stimulus)
    return tuple(seen)


def test_named_orders_of_nsd():
    given = design()
    by = {name: orders.stimuli_of(name, given.shared, orders.shown_by_design(given)) for name in orders.ORDERS}
    expected = slow_first_appearance(given, 37)
    assert by["nsd-shared-982-first-appearance"] == expected
    assert len(expected) == 982
    assert by["nsd-shared-982-sorted"] == tuple(sorted(expected))
    assert by["nsd-shared-1000-sorted"] == by["shared-sorted"] == tuple(sorted(given.shared.tolist()))
    assert by["shared-first-appearance"] == slow_first_appearance(given, 40)
    for subject in range(1, 9):  # which shared image a trial shows is the same for all
        shown = orders.shown_by_design(given, subject)
        assert orders.stimuli_of("nsd-shared-982-first-appearance", given.shared, shown) == expected


def test_orders_that_the_data_do_not_give():
    given = design(late=20)
    shown = orders.shown_by_design(given)
    with pytest.raises(BadDataError, match="'nsd-shared-982-sorted' has 982 images, these data give 98"):
        orders.stimuli_of("nsd-shared-982-sorted", given.shared, shown)
    with pytest.raises(BadDataError, match="has 1000 images, these data give 40"):
        orders.stimuli_of("nsd-shared-1000-sorted", np.arange(40), shown)
    with pytest.raises(UnknownNameError, match="Did you mean 'nsd-shared-1000-sorted'"):
        orders.stimuli_of("nsd-shared-1000-sortd", given.shared, shown)
    short = Design(given.order[:750], given.pictures, given.shared, np.array([0, 750]))
    with pytest.raises(MissingDataError, match="needs sessions 1 to 37, the design has 1"):
        orders.stimuli_of("nsd-shared-982-sorted", given.shared, orders.shown_by_design(short))


def test_orders_of_shards(tiny_shards):
    data = open_data(tiny_shards)
    shown = orders.shown_by_shards(data.shards, data.manifest, 1)
    trials = []
    for session in data.manifest.sessions(1):
        trials += data.shards.read_table(session.path, ["stimulus"])["stimulus"].to_pylist()
    expected = tuple(dict.fromkeys(s for s in trials if s in set(data.shared.tolist())))
    assert orders.stimuli_of("shared-first-appearance", data.shared, shown) == expected
    with pytest.raises(MissingDataError, match=r"needs sessions 1 to 37 of subject 1.*nsd_expdesign\.mat"):
        orders.stimuli_of("nsd-shared-982-sorted", data.shared, shown)


# -- The check of the order --------------------------------------------------------------------------------------------


def images(n, seed):
    """Smooth random pictures, `(N, 3, 32, 32)` in [0, 1]."""
    values = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((n, 3, 32, 32)), (0, 0, 3, 3))
    low, high = values.min((1, 2, 3), keepdims=True), values.max((1, 2, 3), keepdims=True)
    return (values - low) / (high - low)


def blend(truth, share, seed=1):
    """Pictures that hold a share of the truth and noise of the same kind."""
    return share * truth + (1 - share) * images(len(truth), seed)


def bits(values):
    return torch.from_numpy(np.rint(255 * values).astype(np.uint8))


def edges(values):
    """The second feature: where colours change, which says little about pixels themselves."""
    values = values.float() / 255
    return torch.cat([values.diff(dim=2).flatten(1), values.diff(dim=3).flatten(1)], 1)


JUDGE = Judge("edges", edges)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_shuffled_order_is_found(share):
    truth = images(60, 0)
    order = np.random.default_rng(3).permutation(60)
    found = check_order(bits(blend(truth, share)[order]), bits(truth), JUDGE)
    assert found.suspicious
    assert np.mean(np.array(found.best) == order) > 0.5
    assert found.pixcorr[1] > found.pixcorr[0] + 0.2
    assert "the order looks wrong" in str(found)
    assert found.moved > 30


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.15])
def test_the_right_order_is_not_doubted(share):
    truth = images(60, 0)
    found = check_order(bits(blend(truth, share)), bits(truth), JUDGE)
    assert not found.suspicious
    assert "nothing speaks against the order" in str(found)


def test_a_reversed_half_is_found():
    truth = images(60, 0)
    shown = blend(truth, 0.7)
    shown[:30] = shown[:30][::-1]
    found = check_order(bits(shown), bits(truth), JUDGE)
    assert found.suspicious
    assert found.moved == 30


def test_systems_at_chance_are_rarely_accused():
    """They find look-alikes, so pixels and features both rise; the mirrored images show that this means nothing."""
    accused = risen = 0
    for seed in range(40):
        found = check_order(bits(images(40, 100 + seed)), bits(images(40, 500 + seed)), JUDGE, seed)
        accused += found.suspicious
        risen += found.rise[0] > found.rise[1]
    assert risen > 20
    assert accused <= 3


@pytest.mark.parametrize("values", [np.full((20, 3, 32, 32), 0.5), np.repeat(images(1, 4), 20, axis=0)])
def test_the_same_picture_for_all_is_not_accused(values):
    found = check_order(bits(values), bits(images(20, 0)), JUDGE)
    assert not found.suspicious
    assert np.isfinite([*found.pixcorr, *found.feature, *found.rise, *found.lead]).all()


def test_the_assignment_is_the_best_of_all():
    """All permutations of ten would be 3.6 million; that no swap of two is better says nearly as much."""
    truth, shown = bits(images(10, 0)), bits(images(10, 1))
    correlation, best = order_check._assigned(shown, truth)
    total = correlation[np.arange(10), best].sum()
    for first in range(10):
        for second in range(first):
            swapped = best.copy()
            swapped[[first, second]] = swapped[[second, first]]
            assert correlation[np.arange(10), swapped].sum() <= total + 1e-6
    small = [order_check._SMALL(x.float() / 255).flatten(1).numpy() for x in (shown, truth)]
    np.testing.assert_allclose(correlation, np.corrcoef(*small)[:10, 10:], atol=1e-5)


def test_too_few_pictures_say_nothing():
    with pytest.raises(ValueError, match="5 pictures of 5 true images: at least 10"):
        check_order(bits(images(5, 0)), bits(images(5, 0)), JUDGE)


def test_the_judge_is_trained_or_none(tmp_path):
    assert judge_for(find("mindeye2"), "untrained") is None
    assert judge_for(find("scenes-1"), None).name == "scene embedding"


def test_alexnet_judges_where_its_weights_are(tmp_path):
    module = torchvision.models.alexnet(weights=None)
    state = {name: value for name, value in module.state_dict().items() if name.startswith("features.")}
    torch.save(state, tmp_path / "alexnet.pth")
    judge = judge_for(find("scenes-1"), str(tmp_path))
    assert judge.name == "AlexNet features.11"
    shown = bits(images(2, 0))
    pixels = torch.nn.functional.interpolate(shown.float() / 255, (256, 256), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = module.features[:12]((pixels - mean) / std).flatten(1).detach()
    torch.testing.assert_close(judge.features(shown), expected, atol=1e-4, rtol=1e-4)


# -- The stage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tested(tiny_shards):
    """Test images of the tiny data: their numbers, ascending, and their pixels `(N, 3, H, W)`."""
    data = open_data(tiny_shards)
    numbers = [int(s) for s in data.shared]
    found = pictures(data, numbers)
    return numbers, np.stack([found[s].transpose(2, 0, 1) for s in numbers])


def noisy(values, seed=0):
    noise = np.random.default_rng(seed).normal(0, 25, values.shape)
    return np.clip(values + noise, 0, 255).astype(np.uint8)


def run(tmp_path, *more):
    return stage.main(["--name", "theirs", "--runs", str(tmp_path / "runs"), *map(str, more)])


def only_record(tmp_path):
    (record,) = read_records(Folder.at(tmp_path / "runs"))
    events = Folder.at(tmp_path / "runs") / "scores" / record.id
    return record, [json.loads(line) for line in events.read_bytes("events.jsonl").splitlines()]


def test_stage_scores_a_tensor_in_a_named_order(tiny_shards, tested, tmp_path, capsys):
    numbers, truth = tested
    shown = noisy(truth)
    torch.save(torch.from_numpy(shown).float() / 255, tmp_path / "recons.pt")
    given = ("--images", f"1={tmp_path / 'recons.pt'}", "--order", "shared-sorted", "--shards", tiny_shards)
    assert run(tmp_path, *given) == 0
    record, events = only_record(tmp_path)
    expected = score_pictures(torch.from_numpy(shown), torch.from_numpy(truth), "scenes-1")
    for metric in expected.metrics:
        assert record.metrics[metric.name].value == pytest.approx(metric.value, abs=1e-6)
    assert record.division == "open"
    assert record.division_reasons == ("pictures were made elsewhere",)
    assert (record.dataset.betas, record.dataset.voxelset) == ("unstated", "unstated")
    assert record.dataset.content == open_data(tiny_shards).stimuli_manifest.content_digest
    assert [event["event"] for event in events] == ["pictures read", "scored"]
    assert events[0]["metadata"]["rounded_to_8_bits"] is True
    assert "nothing speaks against the order" in " ".join(capsys.readouterr().err.split())
    assert len(numbers) == record.dataset.test_stimuli


def test_stage_doubts_a_wrong_order_and_says_so_on_the_record(tiny_shards, tested, tmp_path, capsys):
    _, truth = tested
    np.save(tmp_path / "recons.npy", noisy(truth)[np.random.default_rng(1).permutation(len(truth))])
    given = ("--images", f"1={tmp_path / 'recons.npy'}", "--order", "shared-sorted", "--shards", tiny_shards)
    assert run(tmp_path, *given) == 0
    record, events = only_record(tmp_path)
    assert "the order looks wrong" in " ".join(capsys.readouterr().err.split())
    assert record.division_reasons[1].startswith("subject 1: the order looks wrong")
    assert events[0]["event"] == "order looks wrong"


def test_truth_from_a_file_gives_the_values_of_the_shards(tiny_shards, tested, tmp_path):
    numbers, truth = tested
    order = np.random.default_rng(2).permutation(len(numbers))
    folder_of(tmp_path / "recons", noisy(truth)[order])
    np.save(tmp_path / "ids.npy", np.array(numbers)[order])
    shown = ("--images", f"1={tmp_path / 'recons'}")
    assert run(tmp_path / "a", *shown, "--ids", tmp_path / "ids.npy", "--shards", tiny_shards) == 0
    np.savez(tmp_path / "truth.npz", truth=truth[order])
    assert run(tmp_path / "b", *shown, "--truth", tmp_path / "truth.npz", "--dataset", "mine") == 0
    (first, _), (second, _) = only_record(tmp_path / "a"), only_record(tmp_path / "b")
    for name, value in first.metrics.items():
        assert second.metrics[name].value == pytest.approx(value.value, abs=1e-6)
    assert second.dataset.name == "mine"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--ids FILE or --order NAME says which stimulus each picture is"),
        (("--order", "shared-sort"), "unknown order 'shared-sort'"),
        (("--order", "nsd-shared-1000-sorted"), "has 1000 images, these data give"),
        (("--order", "file-names"), "holds no stimulus number|stimulus numbers from 0 are needed"),
        (("--order", "shared-sorted", "--ids", "x"), "--ids and --order both say"),
        (("--order", "shared-sorted", "--truth", "x"), "from --shards or from --truth: give one"),
        (("--order", "shared-sorted", "--truth-order", "shared-sorted"), "--truth-order belongs to --truth"),
        (("--ids", "FEW"), r"pictures, .*few\.txt has 2"),
        (("--ids", "UNKNOWN"), "1 of .* stimuli are no test images of .*900000"),
    ],
)
def test_stage_refuses_what_does_not_fit_and_writes_nothing(tiny_shards, tested, tmp_path, capsys, more, message):
    numbers, truth = tested
    np.save(tmp_path / "recons.npy", truth)
    (tmp_path / "few.txt").write_text("1\n2\n")
    (tmp_path / "unknown.txt").write_text("\n".join(map(str, [*numbers[:-1], 900000])))
    files = {"FEW": tmp_path / "few.txt", "UNKNOWN": tmp_path / "unknown.txt"}
    given = [files.get(part, part) for part in more]
    assert run(tmp_path, "--images", f"1={tmp_path / 'recons.npy'}", "--shards", tiny_shards, *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_design_file_names_both_orders_where_there_are_no_shards(tiny_nsd, tmp_path):
    """982 pictures as they first appeared, against the truth of all 1000 sorted by number: each meets its own."""
    (design_file,) = tiny_nsd.rglob("nsd_expdesign.mat")
    design = read_design(design_file)
    order, every = slow_first_appearance(design, 37), sorted(design.shared.tolist())
    assert len(order) == 982
    truth = RNG.integers(0, 256, (1000, 3, 4, 4), dtype=np.uint8)
    with h5py.File(tmp_path / "recons.h5", "w") as file:
        file["subj01"] = 255 - truth[[every.index(stimulus) for stimulus in order]]
    torch.save(torch.from_numpy(truth), tmp_path / "truth.pt")
    given = ScoreArguments(
        images={1: str(tmp_path / "recons.h5")},
        runs=Folder.at(tmp_path / "runs"),
        protocol="scenes-1",
        truth=str(tmp_path / "truth.pt"),
        order="nsd-shared-982-first-appearance",
        truth_order="nsd-shared-1000-sorted",
        design=str(design_file),
        weights="untrained",
    )
    inputs = prepare_inputs(given)
    assert inputs.tested == {1: tuple(sorted(order))}
    true = pictures(inputs.data, inputs.tested[1])
    keys, shown = read_images(inputs.images[1].folder)
    for stimulus, picture in zip(keys["stimulus"].to_pylist(), shown, strict=True):
        np.testing.assert_array_equal(255 - picture, true[stimulus].transpose(2, 0, 1))
    assert inputs.events[0].metadata["order"] == "not checked: too few pictures, or no trained network"
    assert prepare_inputs(given).images == inputs.images
    with pytest.raises(BadDataError, match="holds 1000 true images, 982 pictures were given"):
        prepare_inputs(replace(given, truth_order=None, runs=Folder.at(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


def test_samples_of_a_picture_are_averaged(tested, tmp_path):
    _, truth = tested
    both = np.stack([noisy(truth, 1), noisy(truth, 2)], axis=1)
    np.save(tmp_path / "recons.npy", both)
    np.save(tmp_path / "truth.npy", truth)
    assert run(tmp_path, "--images", f"1={tmp_path / 'recons.npy'}", "--truth", tmp_path / "truth.npy") == 0
    record, events = only_record(tmp_path)
    expected = score_pictures(torch.from_numpy(both), torch.from_numpy(truth), "scenes-1")
    for metric in expected.metrics:
        assert record.metrics[metric.name].value == pytest.approx(metric.value, abs=1e-6)
    assert events[0]["metadata"]["shape"][:2] == [len(truth), 2]


def test_weights_are_listed_with_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RECONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "alexnet.pth").write_bytes(b"weights")
    assert stage.main(["weights", "--weights", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/mine/alexnet.pth  sha256 {hashlib.sha256(b'weights').hexdigest()}" in said
    assert re.search(r"inception_v3 +inception_v3\.pth +missing\n    from \S+", said)
    assert re.search(r"scene +scene\.safetensors +/\S+scene\.safetensors  sha256 [0-9a-f]{64}", said)
    assert stage.main(["weights", "--weights", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_truth_of_another_number_is_refused(tested, tmp_path, capsys):
    _, truth = tested
    np.save(tmp_path / "recons.npy", truth)
    np.save(tmp_path / "truth.npy", truth[:-1])
    assert run(tmp_path, "--images", f"1={tmp_path / 'recons.npy'}", "--truth", tmp_path / "truth.npy") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"holds {len(truth) - 1} true images, {len(truth)} pictures were given" in said
    assert not (tmp_path / "runs").exists()


# -- S3 ----------------------------------------------------------------------------------------------------------------


def stored(bucket, name, path):
    """A file or folder put into a bucket."""
    folder = Folder.at(f"s3://{bucket}/{name}")
    if path.is_dir():
        folder.upload(path)
    else:
        Folder.at(f"s3://{bucket}").write_bytes(name, path.read_bytes())
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", "pt", "npz", "h5"])
def test_pictures_in_s3_are_those_on_disk(s3_bucket, tmp_path, kind):
    path = written(tmp_path, kind, PIXELS)
    place = stored(s3_bucket, f"theirs/{path.name}", path)
    found, expected = outside.read_place(place), outside.read_place(str(path))
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.names == expected.names


def test_samples_in_s3(s3_bucket, tmp_path):
    for sample in range(2):
        folder_of(tmp_path / "samples" / f"sample{sample}", PIXELS[sample::2])
    found = outside.read_place(stored(s3_bucket, "samples", tmp_path / "samples"))
    np.testing.assert_array_equal(found.values, np.stack([PIXELS[::2], PIXELS[1::2]], axis=1))


def test_errors_in_s3_name_the_address(s3_bucket, tmp_path):
    with pytest.raises(MissingDataError, match=f"no file or folder s3://{s3_bucket}/none"):
        outside.read_place(f"s3://{s3_bucket}/none.pt")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match=f"^s3://{s3_bucket}/x.npy cannot be read"):
        outside.read_place(stored(s3_bucket, "x.npy", tmp_path / "x.npy"))
    png(tmp_path / "grey" / "0.png", PIXELS[0], "L")
    with pytest.raises(BadDataError, match=f"^s3://{s3_bucket}/grey/0.png is of mode L"):
        outside.read_place(stored(s3_bucket, "grey", tmp_path / "grey"))
    (tmp_path / "x.tif").write_bytes(b"")
    with pytest.raises(UnknownNameError, match=f"unknown kind of file '.tif' in s3://{s3_bucket}/x.tif"):
        outside.read_place(stored(s3_bucket, "x.tif", tmp_path / "x.tif"))


def test_stage_scores_from_s3_into_s3(s3_bucket, tested, tmp_path):
    """Reconstructions, truth and runs all lie in a bucket; the numbers are those of the local files."""
    _, truth = tested
    np.save(tmp_path / "recons.npy", noisy(truth))
    np.save(tmp_path / "truth.npy", truth)
    places = [stored(s3_bucket, path.name, path) for path in (tmp_path / "recons.npy", tmp_path / "truth.npy")]
    runs = f"s3://{s3_bucket}/runs"
    assert stage.main(["--name", "theirs", "--runs", runs, "--images", f"1={places[0]}", "--truth", places[1]]) == 0
    (record,) = read_records(Folder.at(runs))
    expected = score_pictures(torch.from_numpy(noisy(truth)), torch.from_numpy(truth), "scenes-1")
    for metric in expected.metrics:
        assert record.metrics[metric.name].value == pytest.approx(metric.value, abs=1e-6)


# -- Bad input, through the command line: one message, nothing written -------------------------------------------------


def bad_count(folder, truth):
    np.save(folder / "recons.npy", truth[:-2])


def bad_range(folder, truth):
    np.save(folder / "recons.npy", truth.astype(np.float32))


def bad_nan(folder, truth):
    values = truth.astype(np.float32) / 255
    values[6, 1, 2, 3] = np.nan
    np.save(folder / "recons.npy", values)


def bad_grey(folder, truth):
    np.save(folder / "recons.npy", truth[:, :1])


def bad_rgba(folder, truth):
    folder_of(folder / "recons", truth)
    png(folder / "recons" / "5.png", truth[5], "RGBA")


def bad_file(folder, truth):
    folder_of(folder / "recons", truth)
    (folder / "recons" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def bad_sides(folder, truth):
    """Truth and reconstructions given the other way round, told by five samples an image."""
    np.save(folder / "recons.npy", truth)
    np.save(folder / "truth.npy", np.stack([truth] * 5, axis=1))


def bad_sizes(folder, truth):
    """Height and width exchanged."""
    np.save(folder / "truth.npy", truth[..., :-8])
    np.save(folder / "recons.npy", truth[..., :-8].transpose(0, 1, 3, 2))


BAD = {
    bad_count: r"truth\.npy holds \d+ true images, \d+ pictures were given: every picture needs its own",
    bad_range: r"recons\.npy: image 0 has values from .*divide 0-255 values by 255 first",
    bad_nan: r"recons\.npy: image 6 has NaN",
    bad_grey: r"recons\.npy must hold .* got shape",
    bad_rgba: r"recons/5\.png is of mode RGBA; RGB without transparency is needed",
    bad_file: r"recons/4\.png cannot be read as PNG or JPEG",
    bad_sides: r"truth\.npy holds 5 samples an image; true images have one: exchange --truth and --images",
    bad_sizes: r"recons\.npy: pictures are \d+ x \d+ .*true images \d+ x \d+: height and width look exchanged",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_input_is_one_message_and_nothing_written(tested, tmp_path, capsys, spoil):
    _, truth = tested
    np.save(tmp_path / "truth.npy", truth)
    spoil(tmp_path, truth)
    recons = tmp_path / "recons" if (tmp_path / "recons").exists() else tmp_path / "recons.npy"
    assert run(tmp_path, "--images", f"1={recons}", "--truth", tmp_path / "truth.npy") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.match(rf"error: .*{BAD[spoil]}", said), said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_duplicate_file_numbers_are_refused(tested, tmp_path, capsys):
    _, truth = tested
    folder_of(tmp_path / "recons", truth, "recon_{}.png")
    png(tmp_path / "recons" / "again_3.png", truth[3])
    np.save(tmp_path / "truth.npy", truth)
    given = ("--images", f"1={tmp_path / 'recons'}", "--truth", tmp_path / "truth.npy", "--order", "file-names")
    assert run(tmp_path, *given) == 2
    assert "stimulus 3 stands there 2 times" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_network_are_named_before_anything_is_written(tested, tmp_path, capsys):
    _, truth = tested
    np.save(tmp_path / "recons.npy", truth)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "alexnet.pth")
    given = ("--images", f"1={tmp_path / 'recons.npy'}", "--truth", tmp_path / "recons.npy", "--weights", tmp_path)
    assert run(tmp_path, *given, "--protocol", "mindeye2") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.match(r"error: .*alexnet\.pth holds the weights of another network: \d+ missing \(features", said), said
    assert not (tmp_path / "runs").exists()


# -- Metrics beside the protocol ---------------------------------------------------------------------------------------


def test_a_plug_in_is_on_the_record_and_never_ranked(tested, tmp_path, capsys):
    _, truth = tested
    np.save(tmp_path / "recons.npy", noisy(truth))
    np.save(tmp_path / "truth.npy", truth)
    given = ("--images", f"1={tmp_path / 'recons.npy'}", "--truth", tmp_path / "truth.npy")
    assert run(tmp_path, *given) == 0
    assert run(tmp_path, *given, "--metric", "tests.eval_fakes:BRIGHTNESS") == 0
    plain, extended = sorted(read_records(Folder.at(tmp_path / "runs")), key=lambda r: len(r.metrics))
    assert extended.metrics["brightness"].value == pytest.approx(noisy(truth).mean(), rel=1e-5)
    assert {name: extended.metrics[name] for name in plain.metrics} == plain.metrics
    column = extended.protocol.metrics[-1]
    assert (column.name, column.kind, column.ranked) == ("brightness", "plugin", False)
    assert extended.identity.score.description["plugins"] == {"tests.eval_fakes:BRIGHTNESS": 4}
    assert "plugins" not in plain.identity.score.description
    assert run(tmp_path, *given, "--metric", "sead") == 2
    assert "did you mean 'seed'" in " ".join(capsys.readouterr().err.split())
