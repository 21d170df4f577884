"""Attributes and their encoding, the only input of a router."""

from itertools import product

import pytest

from uniperceiver_v2.modeling.decoder import (
    IMAGE_TEXT_TO_TEXT,
    IMAGE_TO_TEXT,
    TEXT_TO_TEXT,
    Attributes,
    TaskModalities,
    attribute_classes,
)


@pytest.mark.parametrize(
    ("attributes", "digits"),
    [
        (Attributes("special", "input", IMAGE_TO_TEXT), "00100100"),
        (Attributes("image", "input", IMAGE_TO_TEXT), "10100100"),
        (Attributes("text", "target", IMAGE_TO_TEXT), "01100101"),
        (Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True), "01110110"),
        (Attributes("text", "input", TEXT_TO_TEXT), "01010100"),
        (Attributes("image", "target", TaskModalities({"text"}, {"image"})), "10011001"),
    ],
)
def test_encoding(attributes, digits):
    assert attributes.encoding() == tuple(map(int, digits))
    assert len(digits) == Attributes.ENCODING_LENGTH


def test_different_attributes_have_different_encodings():
    sets = ({"image"}, {"text"}, {"image", "text"})
    tasks = [TaskModalities(inputs, targets) for inputs, targets in product(sets, sets)]
    everything = [Attributes(*x) for x in product(("special", "image", "text"), ("input", "target"), tasks, (0, 1))]
    assert len({attributes.encoding() for attributes in everything}) == len(everything) == 108


def test_tasks_of_the_same_modalities_are_the_same():
    assert TaskModalities({"image"}, ["text"]) == IMAGE_TO_TEXT
    assert hash(TaskModalities({"image"}, {"text"})) == hash(IMAGE_TO_TEXT)


@pytest.mark.parametrize(
    ("inputs", "targets"), [({"image"}, set()), ({"sound"}, {"text"}), ({"image", "spe"}, {"text"})]
)
def test_unknown_modalities_are_refused(inputs, targets):
    with pytest.raises(ValueError, match="'image' and 'text'"):
        TaskModalities(inputs, targets)


def test_classes_of_the_tasks():
    detection, captioning = IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT
    assert attribute_classes([detection, captioning, detection]) == [
        Attributes("special", "input", detection),
        Attributes("image", "input", detection),
        Attributes("special", "target", detection),
        Attributes("text", "target", detection),
        Attributes("special", "input", captioning),
        Attributes("image", "input", captioning),
        Attributes("text", "input", captioning, causal=True),
        Attributes("special", "target", captioning),
        Attributes("text", "target", captioning),
    ]
    assert Attributes("text", "input", TEXT_TO_TEXT) in attribute_classes([TEXT_TO_TEXT])
