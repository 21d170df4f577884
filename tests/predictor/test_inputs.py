"""Images as people have them: the right pixels, or one sentence with the file's name while the others get theirs."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.predictor import BadImages
from uniperceiver_v2.predictor.inputs import sources_of


def read(image) -> np.ndarray:
    """The pixels of a single image."""
    (source,), single = sources_of(image)
    assert single
    return source.pixels()


def saved(path: Path, image: Image.Image, **options) -> str:
    image.save(path, **options)
    return str(path)


def test_forms_of_one_image_have_one_answer(predictor, pixels, tmp_path):
    image = pixels()
    path = tmp_path / "a name with blanks, ünï and 数字.png"
    saved(path, Image.fromarray(image))
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    forms = [
        str(path),
        path,
        path.as_uri(),
        f"file://localhost{path.as_uri()[len('file://') :]}",
        Image.fromarray(image),
        Image.open(path),
        image,
        image.astype(np.float32) / 255,
        image.astype(np.uint16) << 8,
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
    ]
    assert "%20" in path.as_uri() and "%" in path.as_uri().split("blanks")[1]
    for form in forms:
        assert np.array_equal(read(form), image), form
    found = predictor.detect(forms, threshold=0)
    for answer in found:
        np.testing.assert_allclose(answer.scores, found[0].scores, atol=1e-4)
    batch = np.stack([image, image])
    assert len(predictor.detect(batch)) == 2 == len(predictor.detect(torch.from_numpy(batch).permute(0, 3, 1, 2)))


def test_kinds_of_files_have_the_right_pixels(picture_files):
    for path, expected in picture_files.items():
        found = read(path)
        assert found.dtype == np.uint8 and found.shape == expected.shape, path
        assert np.array_equal(found, expected), path


def test_jpegs_have_nearly_the_right_pixels(pixels, tmp_path):
    """JPEG loses details, and has CMYK and greys as well."""
    image = pixels()
    for mode in ("RGB", "L", "CMYK"):
        written = Image.fromarray(image).convert(mode)
        found = read(saved(tmp_path / f"{mode}.jpg", written, quality=100))
        assert np.abs(found.astype(int) - np.asarray(written.convert("RGB"))).mean() < 4, mode
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(saved(tmp_path / "turned.jpg", Image.fromarray(np.rot90(image).copy()), quality=95, exif=exif))
    assert turned.shape == image.shape and np.abs(turned.astype(int) - image).mean() < 4


def test_arrays_and_tensors_of_other_channels_have_the_right_pixels(pixels):
    image = pixels()
    grey = np.asarray(Image.fromarray(image).convert("L"))
    as_grey, opaque = np.repeat(grey[:, :, None], 3, axis=2), np.dstack([image, grey])
    for array, expected in ((grey, as_grey), (grey[:, :, None], as_grey), (opaque, image)):
        assert np.array_equal(read(array), expected)
        assert np.array_equal(read(torch.from_numpy(np.atleast_3d(array).copy()).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_sizes_have_answers_to_all_questions(predictor, pixels, size):
    image = pixels(*size)
    encoded = predictor.encode(image)
    found = predictor.detect(encoded, threshold=0)
    assert found.instances.image_size == size
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= size[1]).all() and (found.boxes[:, 3] <= size[0]).all()
    assert np.isfinite(found.scores).all()
    assert torch.isfinite(predictor.classify(encoded).probabilities).all()
    assert torch.isfinite(predictor.embed_images(encoded)).all()
    assert isinstance(predictor.caption(encoded, beams=1).text, str)
    assert len(predictor.ground(encoded, ["a seven"], threshold=0)) > 0


class LargestTensor(TorchDispatchMode):
    """The most elements of a tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_a_phones_photograph_takes_no_more_than_the_size_of_the_test(predictor, pixels):
    """Of 12 megapixels no tensor is larger than those of the same picture at the size of the test."""
    largest = {}
    predictor.caption(pixels(64, 85), beams=1)  # the vocabulary is encoded once
    predictor.detect(pixels(64, 85))
    for name, image in (("photograph", pixels(3000, 4000)), ("small", pixels(64, 85))):
        with LargestTensor() as seen:
            found = predictor.detect(image, threshold=0)
            predictor.ground(image, ["a seven"], threshold=0)
            predictor.caption(image, beams=1)
        largest[name] = seen.elements
    assert largest["photograph"] == largest["small"] < 1_000_000
    assert found.size == (64, 85)
    photograph = predictor.detect(pixels(3000, 4000), threshold=0)
    assert photograph.size == (3000, 4000) and photograph.boxes.max() > 1000
    assert max(photograph.draw().size) == 1600
    few = photograph.above(float(photograph.scores[2]))
    assert few.instances.pred_masks.shape[1:] == (3000, 4000)


def test_a_photographs_file_is_decoded_near_the_size_of_the_test(predictor, photograph, monkeypatch):
    """An eighth of each side serves; the model sees nearly the same, and answers in the pixels of the whole."""
    views = predictor._asker.views
    seen = []
    view = views._view
    monkeypatch.setattr(
        type(views), "_view", lambda _, *given: (seen.append((given[-1].shape, view(*given))), view(*given))[1]
    )
    found = predictor.detect(photograph, threshold=0)
    assert found.size == (3000, 4000) and found.boxes.max() > 1000
    predictor.detect(read(photograph), threshold=0)
    (small, reduced), (large, whole) = seen
    assert (small, large) == ((375, 500, 3), (3000, 4000, 3))
    assert (reduced.float() - whole.float()).abs().mean() < 2


QUESTIONS = {
    "detect": lambda p, images, **k: p.detect(images, threshold=0, **k),
    "classify": lambda p, images, **k: p.classify(images, **k),
    "caption": lambda p, images, **k: p.caption(images, beams=1, **k),
    "ground": lambda p, images, **k: p.ground(images, ["a seven"], threshold=0, **k),
}


def test_a_bad_file_is_one_sentence_with_its_name(predictor, bad_files):
    for path in bad_files:
        for ask in QUESTIONS.values():
            with pytest.raises(UserError) as caught:
                ask(predictor, path)
            assert os.path.basename(path) in str(caught.value) and "\n" not in str(caught.value)
            with pytest.raises(UserError):
                ask(predictor, path, on_error="skip")  # of one image nothing is left


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_others_of_a_list_get_their_answers(predictor, files, bad_files, question, caplog):
    ask = QUESTIONS[question]
    mixed = [files[0], bad_files[0], files[1], *bad_files[1:], files[2]]
    expected = [str(x) for x in ask(predictor, files[:3])]
    with pytest.raises(BadImages) as caught:
        ask(predictor, mixed)
    error = caught.value
    assert [mixed[place] for place in error.failures] == bad_files
    assert all(os.path.basename(path) in str(error) for path in bad_files) and "8 images cannot be used" in str(error)
    assert [str(x) for x in error.results if x is not None] == expected
    with caplog.at_level(logging.WARNING):
        results = ask(predictor, mixed, on_error="skip")
    assert [str(x) for x in results if x is not None] == expected
    assert [i for i, x in enumerate(results) if x is None] == list(error.failures)
    assert all(os.path.basename(path) in caplog.text for path in bad_files)
    encoded = predictor.encode(mixed, on_error="skip")
    assert encoded.failures == error.failures
    assert [str(x) for x in ask(predictor, encoded, on_error="skip") if x is not None] == expected
    part = encoded[1:3]
    assert list(part.failures) == [0]
    assert str(ask(predictor, part, on_error="skip")[1]) == expected[1]
    assert encoded.readable().names == files[:3]
    assert [str(x) for x in ask(predictor, encoded.readable())] == expected


def test_bad_images_have_no_similarity(predictor, files, bad_files):
    mixed = [files[0], bad_files[0], files[1]]
    expected = predictor.embed_images([files[0], files[1]])
    features = predictor.embed_images(mixed, on_error="skip")
    torch.testing.assert_close(features[[0, 2]], expected, atol=1e-4, rtol=0)
    assert features[1].isnan().all()
    found = predictor.retrieve(mixed, ["a seven"], on_error="skip")
    assert sorted(match.place for match in found.images_of("a seven")) == [0, 2]
    with pytest.raises(BadImages, match=r"truncated\.jpg") as caught:
        predictor.retrieve(mixed, ["a seven"])
    assert caught.value.results.images == found.images
    with pytest.raises(UserError, match='on_error is "raise" or "skip", not \'ignore\''):
        predictor.embed_images(files, on_error="ignore")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "cannot be None"),
        (7, "cannot be a int"),
        (np.zeros((3, 40, 60), np.uint8), r"\[3, 40, 60\] is no image: arrays are \[H,W,3\], tensors \[3,H,W\]"),
        (torch.zeros(40, 60, 3), r"\[40, 60, 3\] is no image"),
        (np.full((4, 4, 3), 200.0), "have to be in 0..1"),
        (np.full((4, 4, 3), np.nan), "have to be in 0..1"),
        (np.zeros((4, 4, 3), np.int64), "are int64"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        ("http://example.org/picture.jpg", "picture.jpg"),
    ],
)
def test_what_is_no_image_is_told(predictor, files, image, message):
    with pytest.raises(UserError, match=message):
        predictor.detect(image)
    with pytest.raises(BadImages, match=message) as caught:
        predictor.detect([files[0], image])
    assert caught.value.results[0].name == files[0] and caught.value.results[1] is None
    if not isinstance(image, str):
        assert "image 1 of the list" in str(caught.value)


def test_a_pillow_image_that_is_cut_short_is_told_by_its_file(predictor, bad_files):
    with pytest.raises(UserError, match=r"truncated\.jpg: "):
        predictor.detect(Image.open(bad_files[0]))
