"""Questions about uploads: the predictor's answers, one encoding for all of them, and refusals in sentences."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.web import answers as module
from uniperceiver_v2.web.limits import Limits
from uniperceiver_v2.web.worker import Deadline, TooLate


def test_objects_are_the_predictors(answers, files):
    for path in files:
        expected = answers.predictor.detect(path, threshold=0.02)
        found = answers.detect(path, "", 0.02)
        assert [row[0] for row in found.rows] == [box.label for box in expected]
        np.testing.assert_allclose([row[1] for row in found.rows], expected.scores, atol=1e-3)
        np.testing.assert_allclose([row[2:] for row in found.rows], expected.boxes, atol=0.1)
        assert found.said == f"{len(expected)} objects."
        height, width = expected.size
        assert max(found.picture.size) == 480
        assert found.picture.width / found.picture.height == pytest.approx(width / height, rel=0.02)


def test_the_drawn_picture_shows_objects(answers, files):
    without, found = answers.detect(files[0], "", 1), answers.detect(files[0], "", 0.02)
    assert without.rows == []
    assert without.said == "Nothing with a score of 100% or more."
    assert (np.asarray(without.picture) != np.asarray(found.picture)).any()


def test_labels_are_what_the_visitor_types(answers, files):
    found = answers.detect(files[0], "cat, a dog", 0.0)
    assert {row[0] for row in found.rows} == {"cat", "a dog"}
    assert set(answers.classify(files[0], "cat, a dog")) == {"cat", "a dog"}
    expected = answers.predictor.classify(files[0]).top(5)
    assert list(answers.classify(files[0])) == [label for label, _ in expected]
    assert list(answers.classify(files[0]).values()) == pytest.approx([p for _, p in expected], abs=1e-5)


def test_phrases_and_those_that_mean_nothing(answers, files):
    expected = answers.predictor.ground(files[0], ["the two", "a red seven"], threshold=0)
    scores = [max((box.score for box in expected.of(phrase)), default=0) for phrase in expected.labels]
    assert scores[0] != scores[1]
    found = answers.ground(files[0], "the two, a red seven", sum(scores) / 2)
    better, worse = expected.labels[int(np.argmax(scores))], expected.labels[int(np.argmin(scores))]
    assert {row[0] for row in found.rows} == {better}
    assert found.said.endswith(f"Nothing for: {worse}.")
    with pytest.raises(UserError, match="type phrases"):
        answers.ground(files[0], " , ")


def test_a_caption_with_its_likelihood(answers, files):
    expected = answers.predictor.caption(files[0])
    text, likelihood = answers.caption(files[0])
    assert text == (expected.text or "(no caption)")
    assert likelihood.startswith(f"log-likelihood −{-expected.log_likelihood:.2f}")
    assert "probability" in likelihood


def test_one_encoding_answers_all_questions_and_survives_the_file(answers, files, monkeypatch):
    encoded = []
    encode = answers.predictor.encode
    monkeypatch.setattr(answers.predictor, "encode", lambda images: encoded.append(1) or encode(images))
    copy = Path(files[0]).with_name("copy.png")
    copy.write_bytes(Path(files[0]).read_bytes())
    answers.detect(files[0])
    answers.ground(str(copy), "the two")  # another upload of the same picture
    answers.classify(files[0])
    answers.caption(files[0])
    answers.feature_of(files[0])
    assert len(encoded) == 1
    answers.detect(files[1])
    assert len(encoded) == 2


def test_encodings_are_dropped_by_number_and_by_size(answers, files):
    for limits, kept in ((Limits(kept_encodings=2), 2), (Limits(kept_pixels=1), 1), (Limits(), 5)):
        answers.limits = limits
        answers._encodings.clear()
        for path in files:
            answers.caption(path)
        assert len(answers._encodings) == kept
        last = answers._encodings[next(reversed(answers._encodings))]
        assert last.sources[0].value.shape[:2] == (100, 120)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that promises a size, and whose pixels are missing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "x ü.png: "),
        (b"<svg/>", "x ü.png: cannot identify the image's format"),
        (png_header(20, 20), "x ü.png: "),
        (png_header(8000, 7000), r"x ü.png has 56 megapixels \(8000 x 7000\): this page takes 50 megapixels"),
        (png_header(60000, 60000), "x ü.png: .*decompression bomb"),
    ],
    ids=["empty", "no picture", "cut short", "too large", "bomb"],
)
def test_bad_pictures_are_named_without_the_servers_folders(answers, tmp_path, content, said):
    path = tmp_path / "x ü.png"
    path.write_bytes(content)
    with pytest.raises((UserError, UnreadableImage), match=f"^{said}") as caught:
        answers.detect(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_large_files_missing_files_and_no_file(answers, files, tmp_path):
    with pytest.raises(UserError, match="choose a picture first"):
        answers.caption(None)
    with pytest.raises(UserError, match=r"^gone\.png is not on the server any more"):
        answers.caption(str(tmp_path / "gone.png"))
    answers.limits = replace(answers.limits, upload_bytes=1000)
    with pytest.raises(UserError, match=r"^4\.png has .* MB: this page takes"):
        answers.caption(files[4])


def test_pictures_as_people_have_them(answers, picture_files):
    for path, pixels in picture_files.items():
        expected = answers.predictor.detect(path, threshold=0.02)
        found = answers.detect(path, "", 0.02)
        assert [row[0] for row in found.rows] == [box.label for box in expected], path
        np.testing.assert_allclose([row[2:] for row in found.rows], expected.boxes, atol=0.1)
        assert (found.picture.width > found.picture.height) == (pixels.shape[1] > pixels.shape[0]), path
        assert answers.classify(path) and answers.caption(path)


def test_files_as_people_have_them_that_are_no_pictures(answers, bad_files):
    for path in bad_files[:5]:  # what can be uploaded
        with pytest.raises((UserError, UnreadableImage), match=f"^{Path(path).name}: "):
            answers.detect(path)


def test_a_photograph_is_drawn_smaller(answers, photograph):
    found = answers.detect(photograph, "", 0.02)
    assert found.picture.size == (1600, 1200)
    assert any(row[4] > 1600 or row[5] > 1200 for row in found.rows)  # pixels of the photograph itself


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "0.3", None, True, float("nan")])
def test_a_threshold_is_a_score(answers, files, threshold):
    with pytest.raises(UserError, match=r"score in 0\.\.1"):
        answers.detect(files[0], "", threshold)


def test_a_request_that_takes_too_long_ends_in_a_sentence(answers, files, monkeypatch):
    answers.limits = replace(answers.limits, seconds=0.0)
    with pytest.raises(TooLate, match="no answer within 0 s"):
        answers.caption(files[0])
    with pytest.raises(TooLate, match="no answer within 0 s"):
        answers.search(answers.predictor.gallery(files), "a red seven", 3)


def test_unknown_names_of_the_training_are_said(answers, files):
    answers.predictor.model.tasks["detection"].labels = ()
    with pytest.raises(UserError, match="type labels"):
        answers.detect(files[0])
    assert answers.detect(files[0], "cat", 0.0).rows


def test_pixels_do_not_change_on_their_way(pixels):
    picture = pixels(7, 5)
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    assert (module.pixels_of_content(content.getvalue(), "x", Limits()) == picture).all()
    assert Deadline(5).left() > 4
