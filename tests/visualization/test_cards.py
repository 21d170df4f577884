"""Cards of answers, and sheets of them."""

import numpy as np
import pytest
from PIL import Image

from uniperceiver_v2.visualization import Answers, Mark, Panel, draw_card, draw_marks, draw_sheet, fitted


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((96, 96), (480, 480)),
        ((1, 1), (480, 480)),
        ((1, 4000), (1, 1600)),
        ((3000, 4000), (1200, 1600)),
        ((700, 900), (700, 900)),
    ],
)
def test_the_longer_side_is_made_to_fit(size, expected):
    image = np.full((*size, 3), 77, np.uint8)
    assert fitted(image, 480, 1600).shape == (*expected, 3)
    assert (fitted(image, 480, 1600) == 77).all()


def mark(text: str, box: tuple[int, int, int, int], colour: int = 0) -> Mark:
    mask = np.zeros((200, 300), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return Mark(text, colour, box, mask)


def test_a_mark_changes_its_place_and_leaves_the_rest():
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = np.asarray(draw_marks(image, [mark("seven 93", (100, 80, 180, 160))]))
    changed = (drawn != 128).any(axis=2)
    assert changed[85:155, 105:175].all()  # tinted
    name = changed[55:78, 95:175]
    assert name.mean() > 0.5
    changed[50:165, 95:185] = False
    assert not changed.any()
    assert (image == 128).all()  # the caller's picture is left alone


def test_names_of_neighbours_do_not_cover_each_other():
    image = np.full((200, 300, 3), 128, np.uint8)
    alone = np.asarray(draw_marks(image, [mark("two 80", (100, 80, 180, 160), 1)]))
    both = np.asarray(
        draw_marks(image, [mark("seven 93", (100, 80, 180, 160)), mark("two 80", (100, 80, 180, 160), 1)])
    )
    above = np.s_[62:78, 102:140]
    assert (both[above] != alone[above]).any()  # the better one has the place above
    assert (both[163:176, 102:120] != 128).any()  # the other moves below


@pytest.mark.parametrize("box", [(290, 190, 300, 200), (0, 0, 8, 8), (150, 100, 150, 100)])
def test_objects_at_the_edge_and_without_area_are_drawn(box):
    """Their outline and a name, which is long, are in the picture, and the picture stays as large as it is."""
    image = np.full((200, 300, 3), 128, np.uint8)
    drawn = draw_marks(image, [mark("a long name of a small thing 100", box)])
    changed = (np.asarray(drawn) != 128).any(axis=2)
    assert drawn.size == (300, 200)
    assert changed[min(box[1], 199), min(box[0], 299)]  # the outline
    assert changed.any(axis=0).sum() > 100  # the whole name


def test_a_picture_of_one_pixel_is_drawn_on():
    image = np.zeros((1, 1, 3), np.uint8)
    drawn = draw_marks(
        image, [Mark("a long name of a small thing 100", 40, (0.0, 0.0, 1.0, 1.0), np.ones((1, 1), bool))]
    )
    assert drawn.size == (1, 1) and np.asarray(drawn).any()


def test_cards_of_equal_questions_have_equal_sizes():
    panel = Panel(Image.new("RGB", (300, 200), "red"), "objects")
    short = Answers(("a digit", -1.5), [("seven", 1.0)])
    long = Answers((" ".join(["a red seven"] * 40), -99.0), [("seven", 0.5), ("w" * 300, 0.4), ("", 0.1), ("x", 0.0)])
    assert draw_card([panel, panel], short, "a").size == draw_card([panel, panel], long, "b" * 500).size
    assert draw_card([panel], short, "a").size != draw_card([panel], Answers(), "a").size


def test_a_card_shows_all_that_was_asked():
    panel = Panel(Image.new("RGB", (360, 100), (200, 30, 30)))
    card = np.asarray(draw_card([panel], Answers(("a digit", -1.5), [("seven", 0.75), ("two", 0.25)]), side=360))
    assert card.shape[1] == 360
    assert (card[180, 180] == (200, 30, 30)).all()  # in the middle of its square
    blue = (card == (47, 111, 219)).all(axis=2).sum(axis=1)
    lengths = sorted({int(length) for length in blue if length})
    assert len(lengths) == 2
    assert lengths[1] == pytest.approx(3 * lengths[0], rel=0.05)  # bars are as long as probabilities


def test_a_sheet_has_rows_of_cards_below_its_title():
    cards = [Image.new("RGB", (360, 300), colour) for colour in ("red", "lime", "blue", "cyan", "magenta")]
    sheet = np.asarray(draw_sheet(cards, "what the model has learned " * 20))
    assert sheet.shape[1] <= 1600
    found = {tuple(colour) for colour in sheet.reshape(-1, 3)[::7]}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255)} <= found
    assert draw_sheet(cards[:1], "t").width < 500
    assert draw_sheet([Image.new("RGB", (3000, 10))] * 2, "t").height > 2 * 10  # a column
