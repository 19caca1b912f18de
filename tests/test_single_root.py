"""What readers below one root share, with a reader whose files are a table of which sessions there are."""

import itertools

import numpy as np
import pytest

from bench.core.errors import BadDataError, MissingDataError, OptionError, ReconbenchError, UnknownNameError
from bench.data.datasets._single_root import RootOptions, SingleRoot
from bench.data.datasets.base import VoxelTable

LABELS = {"V1": np.array([0, 1, 2, 0, 1], np.int16), "V2": np.array([1, 0, 0, 0, 1], np.int16)}
NAMES = {"V1": {"left": 1, "right": 2}, "V2": {"V2": 1}}


class Reader(SingleRoot):
    """Four planned sessions of three subjects; `there` says which have betas."""

    version = 3
    Options = RootOptions
    reader = "small"
    title = "Small"
    SUBJECTS = (1, 2, 3)
    SESSIONS = 4
    form = "b1.volume"
    label_names = NAMES
    choices = {"voxelset": ("V1", "V2", "V1 & V2", "V1:right & V2", "V3")}  # noqa: RUF012 - never changed

    def __init__(self, there=(), voxelset="V1", **options):
        super().__init__(RootOptions(root="/data/small", voxelset=voxelset, **options))
        self.there, self.times = there or {(1, 1), (1, 2), (3, 1)}, 0

    def present(self, subject):
        return {n for s, n in self.there if s == subject}

    def keys(self, subject, session):
        return f"sub{subject}/ses{session}.hdf5", f"sub{subject}/ses{session}.nii"

    def read_voxels(self, subject):
        self.times += 1
        chosen = np.flatnonzero(self.select(subject, LABELS, NAMES))
        own = {atlas: values[chosen] for atlas, values in LABELS.items()}
        return VoxelTable(chosen[:, None].astype(np.int32), np.full(len(chosen), np.nan, np.float32), own)

    trials = reads = read_session = stimuli = None


def expected(there, subjects, sessions):
    """The rule, told slowly: which pairs, or None where an error is due."""
    pairs = []
    for subject in (1, 2, 3):
        own = [n for s, n in there if s == subject]
        if subject not in (subjects if subjects is not None else [s for s, _ in there]):
            continue
        if sessions is None:
            wanted = list(range(1, max(own) + 1)) if own else [1]
        else:
            wanted = list(range(1, sessions + 1)) if isinstance(sessions, int) else sorted(set(sessions))
        pairs += [(subject, n) for n in wanted]
    return pairs if pairs and set(pairs) <= set(there) else None


def test_sessions_are_those_asked_for_or_all_up_to_the_last():
    present = [{(1, 1), (1, 2), (3, 1)}, {(1, 1), (1, 3)}, {(2, 2)}, {(s, n) for s in (1, 2, 3) for n in range(1, 5)}]
    chosen_subjects = [None, (), (1,), (3, 1, 3), (2,)]
    chosen_sessions = [None, (), (1,), (2, 1, 2), (4,), 0, 1, 3]
    errors = 0
    for there, subjects, sessions in itertools.product(present, chosen_subjects, chosen_sessions):
        reader, pairs = Reader(there, subjects=subjects, sessions=sessions), expected(there, subjects, sessions)
        if pairs is None:
            errors += 1
            with pytest.raises(MissingDataError, match=r"no betas .*sub\d/ses\d\.hdf5 or sub\d/ses\d\.nii"):
                reader.sessions()
        else:
            assert reader.sessions() == pairs
    assert 40 < errors < 140


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subjects": (4,)}, OptionError, "no subject 4: Small has subjects 1 to 3"),
        ({"subjects": (0, 1)}, OptionError, "no subject 0: Small has subjects 1 to 3"),
        (
            {"sessions": 5, "subjects": (3,)},
            MissingDataError,
            "no betas of subject 3, session 2: there is no sub3/ses2",
        ),
        ({"sessions": (5,)}, OptionError, "no session 5: Small has sessions 1 to 4"),
        ({"sessions": (-1,)}, OptionError, "no session -1: Small has sessions 1 to 4"),
        ({"sessions": ()}, MissingDataError, "/data/small has no betas b1.volume, such as sub1/ses1.hdf5 .*no session"),
    ],
)
def test_what_is_not_there_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Reader(**options).sessions()


def test_one_session_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(Reader, "SESSIONS", 1)
    with pytest.raises(OptionError, match="no session 2: Small has one session a subject, session 1"):
        Reader(sessions=(2,)).sessions()


def test_names_are_compared_when_the_reader_is_made():
    with pytest.raises(UnknownNameError, match=r"unknown voxelset 'V1 & V' in options of dataset 'small'.*'V1 & V2'"):
        Reader(voxelset="V1 & V")
    assert (Reader().name, Reader(name="mine").name, Reader(name="mine").reader) == ("small", "mine", "small")


@pytest.mark.parametrize("voxelset", ["V1", "V2", "V1 & V2"])
def test_voxels_are_selected_and_read_once(voxelset):
    reader = Reader(voxelset=voxelset)
    inside = [(LABELS[atlas] > 0) for atlas in voxelset.split(" & ")]
    assert reader.voxels(1).coordinates.ravel().tolist() == np.flatnonzero(np.all(inside, axis=0)).tolist()
    assert reader.voxels(1) is reader.voxels(1) and reader.times == 1


def test_a_voxel_set_that_takes_nothing_says_how_large_its_rois_are():
    with pytest.raises(
        BadDataError, match=r"'V1:right & V2' of subject 2 selects no voxel; .* {'V1': 3, 'V2': 2} in /data"
    ):
        Reader(voxelset="V1:right & V2").voxels(2)
    with pytest.raises(UnknownNameError, match="unknown ROI 'V3' in voxel set 'V3' of subject 2"):
        Reader(voxelset="V3").voxels(2)


def test_source_has_what_decides_the_shards_and_nothing_else():
    reader = Reader(name="mine", signed=True)
    digests = {str(subject): reader.voxels(subject).digest for subject in (1, 3)}
    origin = {"reader": "small", "version": 3}
    assert reader.source() == {**origin, "voxels": digests, "voxelset": "V1", "label_names": NAMES}
    assert reader.stimuli_source() == origin and reader.label == "b1.volume.V1"
    assert reader.sessions_by_subject() == {"1": [1, 2], "3": [1]}


@pytest.mark.parametrize("number", [-1, 5, 10**9])
def test_numbers_beyond_the_pictures(number):
    Reader().check_number(4, 5)
    with pytest.raises(MissingDataError, match=f"Small has pictures 0 to 4, not {number}") as raised:
        Reader().check_number(number, 5)
    assert isinstance(raised.value, ReconbenchError)
