"""Scores of the gallery's images and their place among all test images, against sorting by hand."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from board_records import draw, scored

from bench.board import gallery as pictures
from bench.board.gallery import Item
from bench.board.image_scores import filled, image_scores
from bench.core.errors import CorruptFileError
from bench.core.storage import Folder
from bench.leaderboard import build_board, check_board
from bench.records.record import write_record

PNG = b"\x89PNG\r\n\x1a\nrest"


def by_hand(values, mine, higher):
    """Place, ties and count of one value, by walking over all of them."""
    known = [value for value in values if value == value]
    ordered = sorted(known, reverse=higher)
    return {
        "value": pytest.approx(mine),
        "rank": ordered.index(mine) + 1,
        "tied": known.count(mine) - 1,
        "of": len(known),
    }


def test_positions_are_those_of_a_sorted_list():
    values = draw(0.5, subjects=2, images=20)
    values["pixcorr"] = np.round(values["pixcorr"], 1)  # many ties
    record, samples = scored("a", values)
    for subject in (1, 2):
        for stimulus in range(20):
            found = image_scores(record, samples, [(subject, stimulus)])[subject, stimulus]
            for column in record.protocol.metrics:
                own = values[column.name][subject - 1].tolist()
                assert found[column.name] == by_hand(own, own[stimulus], column.higher_is_better)


def test_missing_values_and_unknown_images_are_left_out():
    values = draw(0.5, subjects=1, images=6)
    values["ssim"][0, 2] = np.nan
    values["low"][:] = np.nan
    record, samples = scored("a", values)
    found = image_scores(record, samples, [(1, 2), (1, 3), (1, 99), (2, 3)])
    assert set(found) == {(1, 2), (1, 3)}
    assert set(found[1, 2]) == {"pixcorr", "high", "distance"}
    assert found[1, 3]["ssim"]["of"] == 5
    assert found[1, 3]["ssim"] == by_hand(values["ssim"][0].tolist(), values["ssim"][0, 3], True)


def test_samples_of_an_image_are_averaged():
    record, samples = scored("a", draw(0.5, subjects=1, images=4))
    again = samples.set_column(
        samples.column_names.index("pixcorr"), "pixcorr", pa.array(samples["pixcorr"].to_numpy() + 0.5)
    )
    found = image_scores(record, pa.concat_tables([samples, again]), [(1, 0)])[1, 0]["pixcorr"]
    assert found["value"] == pytest.approx(samples["pixcorr"][0].as_py() + 0.25)
    assert found["of"] == 4


def shown(*records):
    return pictures.gallery([Item(1, 3, "a ball", PNG, {record.id: PNG for record in records})])


def test_gallery_is_filled_for_records_that_are_there_and_is_strict():
    (first, samples), (gone, _) = (scored(name, draw(0.5)) for name in "ab")
    made = filled(shown(first, gone), [first], {first.id: samples})
    pictures.validate(made, "gallery.json")
    (item,) = made["items"]
    assert set(item["scores"]) == {first.id}
    assert set(item["scores"][first.id]) == {column.name for column in first.protocol.metrics}
    assert filled(made, [first], {first.id: samples}) == made
    item["scores"][first.id]["pixcorr"]["percentile"] = 3
    with pytest.raises(CorruptFileError, match=r"scores.*percentile"):
        pictures.validate(made, "gallery.json")


def test_gallery_of_an_older_release_says_how_to_write_it_anew():
    old = shown() | {"schema_version": "1.0.0"}
    with pytest.raises(CorruptFileError, match=r"runs/gallery\.json has schema version 1\.0\.0.*sweep --resume"):
        pictures.validate(old, "runs/gallery.json")


def test_scores_that_records_do_not_hold_are_found(tmp_path):
    runs = Folder.at(tmp_path)
    record, samples = scored("a", draw(0.5))
    write_record(runs / "scores" / record.id, record, samples)
    items = [Item(1, 3, "", PNG, {record.id: PNG})]
    build_board(runs, runs, items)
    check_board(runs, runs)
    content = runs.read_json("gallery.json")
    content["items"][0]["scores"][record.id]["pixcorr"]["rank"] += 1
    runs.write_json("gallery.json", content)
    with pytest.raises(CorruptFileError, match=r"gallery\.json holds scores that the records of"):
        check_board(runs, runs)
    with pytest.raises(CorruptFileError, match=r"gallery\.json"):
        bad = dataclasses.replace(items[0], subject=0)
        build_board(runs, runs, [bad])
