"""The sheet of scenes: predictions are at their places, and any text fits."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from uniperceiver_v2.visualization import caption_sheet, draw_caption_sheet

SIZE = caption_sheet._PICTURE


@pytest.fixture
def scenes(tmp_path):
    """scenes(count, detections, **caption): the sheet's arguments for black images with ids 1, 2, ..."""
    DatasetCatalog.register("sheet_test", lambda: [])
    metadata = MetadataCatalog.get("sheet_test")
    metadata.set(thing_classes=["zero", "one"], thing_dataset_id_to_contiguous_id={7: 0, 3: 1})

    def write(count, detections, size=(90, 90), caption="a caption", reference="a reference"):
        captions = []
        for index in range(1, count + 1):
            path = str(tmp_path / f"{index}.png")
            cv2.imwrite(path, np.zeros((*size, 3), np.uint8))
            captions.append({"image_id": index, "file_name": path, "caption": caption, "references": [reference]})
        (tmp_path / "captions.json").write_text(json.dumps(captions))
        (tmp_path / "detections.json").write_text(json.dumps(detections))
        paths = [str(tmp_path / name) for name in ("new/sheet.png", "captions.json", "detections.json")]
        return {"path": paths[0], "dataset_name": "sheet_test", "captions_json": paths[1], "detections_json": paths[2]}

    yield write
    DatasetCatalog.remove("sheet_test")
    MetadataCatalog.remove("sheet_test")


def found(image_id, box=(30, 40, 30, 20), category=3, score=0.9):
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def picture(sheet, index, columns=4):
    """The picture of a scene on a sheet."""
    top = caption_sheet._TITLE_HEIGHT + index // columns * (SIZE + caption_sheet._TEXT_HEIGHT)
    left = caption_sheet._GAP + index % columns * (SIZE + caption_sheet._GAP)
    return sheet[top : top + SIZE, left : left + SIZE]


def below(sheet, index, columns=4):
    """The area of a scene's text on a sheet, with the margins around it."""
    top = caption_sheet._TITLE_HEIGHT + index // columns * (SIZE + caption_sheet._TEXT_HEIGHT) + SIZE
    left = index % columns * (SIZE + caption_sheet._GAP)
    return sheet[top : top + caption_sheet._TEXT_HEIGHT, left : left + SIZE + 2 * caption_sheet._GAP]


def test_twelve_scenes_with_their_detections(scenes):
    arguments = scenes(15, [found(index) for index in range(2, 16)])
    assert draw_caption_sheet(**arguments)
    sheet = cv2.imread(arguments["path"])
    assert sheet.shape == (52 + 3 * (SIZE + 112), 24 + 4 * (SIZE + 24), 3)
    for index in range(12):
        scene = picture(sheet, index)
        for side in (scene[160, 120:240], scene[240, 120:240], scene[160:240, 120], scene[160:240, 240]):
            assert (side == 255).all(), "the box, four times as large as the image's"
        assert scene[165:235, 125:235].max() <= 0x1F, "nothing but the dark line inside"
        assert (below(sheet, index) < 100).any()


def test_the_label_names_the_category_with_its_score(scenes, monkeypatch):
    labels = []
    monkeypatch.setattr(caption_sheet, "_label", lambda draw, text, box, taken: labels.append((text, box)))
    draw_caption_sheet(**scenes(1, [found(1, category=7, score=0.456), found(1), found(1, score=0.2)]))
    assert labels == [("one 90", (120, 160, 240, 240)), ("zero 46", (120, 160, 240, 240))]


def test_labels_avoid_each_other_and_stay_inside(scenes, monkeypatch):
    places = []
    original = caption_sheet._label

    def label(*args):
        places.append(original(*args))
        return places[-1]

    monkeypatch.setattr(caption_sheet, "_label", label)
    boxes = [(0, 0, 30, 20), (0, 0, 31, 21), (60, 70, 30, 20), (60, 71, 30, 19), (0, 0, 90, 90), (-9, 70, 9, 29)]
    assert draw_caption_sheet(**scenes(1, [found(1, box) for box in boxes]))
    assert len(places) == len(boxes)
    assert all(min(place) >= 0 and max(place) <= SIZE for place in places)
    assert not any(caption_sheet._overlap(a, b) for i, a in enumerate(places) for b in places[:i])


def test_an_image_of_any_shape_is_shown_whole(scenes):
    arguments = scenes(1, [found(1, score=0.1)], size=(600, 1200))
    draw_caption_sheet(**arguments)
    scene = picture(cv2.imread(arguments["path"]), 0, columns=1)
    assert (scene[SIZE // 4 : 3 * SIZE // 4] == 0).all()
    assert (scene[: SIZE // 4] > 200).all() and (scene[3 * SIZE // 4 :] > 200).all()


@pytest.mark.parametrize("text", ["", "word " * 60, "endless" * 40, "größer 女性 \n\t🐕", "a\u2028b"])
def test_any_text_stays_in_its_place(scenes, text):
    arguments = scenes(1, [found(1)], caption=text, reference=text)
    draw_caption_sheet(**arguments)
    room = below(cv2.imread(arguments["path"]), 0, columns=1)
    assert (room[:, :24] == 255).all() and (room[:, -24:] == 255).all() and (room[-8:] == 255).all()
    assert (room[:, 24:-24] < 100).any(), "even an empty caption is told"


def test_scenes_without_both_are_left_out(scenes):
    arguments = scenes(3, [found(9)])
    assert not draw_caption_sheet(**arguments)
    assert cv2.imread(arguments["path"]) is None
    arguments = scenes(3, [found(2), found(3), found(4)])
    assert draw_caption_sheet(**arguments)
    assert cv2.imread(arguments["path"]).shape[1] == 24 + 2 * (SIZE + 24)


@pytest.mark.parametrize("text", ["größer naïve Ünï", "красный", "κόκκινο"])
def test_letters_of_europe_are_written_as_they_are(text):
    font = caption_sheet._font(16)
    for letter in text.replace(" ", ""):
        assert bytes(font.getmask(letter)) != bytes(font.getmask("\uffff")), letter
