"""Tables of instances."""

import copy
import pickle

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks


def table():
    return Instances(
        (10, 20),
        gt_boxes=Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        gt_classes=torch.tensor([7, 8, 9]),
        names=["a", "b", "c"],
        gt_masks=PolygonMasks([[[0, 0, i, 0, i, i]] for i in (1, 2, 3)]),
    )


def values(instances):
    return {
        "gt_boxes": instances.gt_boxes.tensor[:, 2].tolist(),
        "gt_classes": instances.gt_classes.tolist(),
        "names": list(instances.names),
        "gt_masks": instances.gt_masks.area().tolist(),
    }


def test_fields_are_attributes():
    instances = table()
    assert instances.image_size == (10, 20)
    assert len(instances) == 3
    assert instances.gt_classes is instances.get("gt_classes") is instances.get_fields()["gt_classes"]
    instances.scores = torch.rand(3)
    assert instances.has("scores")
    instances.remove("scores")
    assert not instances.has("scores")
    assert not hasattr(instances, "scores")


def test_a_field_can_be_replaced():
    instances = table()
    instances.names = ["x", "y", "z"]
    assert instances.names == ["x", "y", "z"]


def test_lengths_must_agree():
    instances = table()
    with pytest.raises(AssertionError):
        instances.scores = torch.rand(2)
    with pytest.raises(AssertionError):
        instances.set("scores", [1])
    with pytest.raises(AssertionError):
        Instances((1, 1), a=[1], b=[1, 2])


def test_a_missing_field_is_named():
    with pytest.raises(AttributeError, match="scores"):
        table().scores  # noqa: B018
    with pytest.raises(KeyError):
        table().get("scores")


def test_underscored_names_are_ordinary_attributes():
    instances = table()
    instances._note = 5
    assert instances._note == 5
    assert "_note" not in instances.get_fields()


@pytest.mark.parametrize(
    ("item", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        (slice(3, None), []),
    ],
)
def test_indexing_reaches_every_field(item, rows):
    chosen, whole = table()[item], values(table())
    assert chosen.image_size == (10, 20)
    assert len(chosen) == len(rows)
    assert values(chosen) == {name: [column[row] for row in rows] for name, column in whole.items()}


@pytest.mark.parametrize("item", [torch.tensor([True, False, True]), torch.tensor([0, 2])])
def test_indexing_by_tensors(item):
    instances = table()
    instances.remove("names")  # a list cannot be indexed so
    chosen = instances[item]
    assert chosen.gt_classes.tolist() == [7, 9]
    assert chosen.gt_boxes.tensor[:, 3].tolist() == [1, 3]
    assert chosen.gt_masks.area().tolist() == [0.5, 4.5]


@pytest.mark.parametrize("item", [3, -4])
def test_an_index_out_of_range(item):
    with pytest.raises(IndexError):
        table()[item]


def test_it_is_not_iterable():
    with pytest.raises(NotImplementedError):
        iter(table())


def test_without_fields_there_is_no_length():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_to_moves_what_can_be_moved():
    moved = table().to("meta")
    assert moved.gt_boxes.device.type == moved.gt_classes.device.type == "meta"
    assert moved.names == ["a", "b", "c"]
    assert moved.image_size == (10, 20)


def test_cat():
    joined = Instances.cat([table(), table()[1], table()[slice(3, None)]])
    one = values(table())
    assert values(joined) == {name: column + [column[1]] for name, column in one.items()}
    assert joined.image_size == (10, 20)


def test_cat_of_bitmaps():
    single = Instances((2, 2), pred_masks=BitMasks(torch.eye(2)[None]))
    joined = Instances.cat([single, single])
    assert joined.pred_masks.tensor.tolist() == [[[True, False], [False, True]]] * 2


def test_cat_needs_one_image_size_and_fields_that_can_be_joined():
    with pytest.raises(AssertionError):
        Instances.cat([Instances((1, 1), a=[1]), Instances((1, 2), a=[1])])
    with pytest.raises(AssertionError):
        Instances.cat([])
    with pytest.raises(ValueError, match="range"):
        Instances.cat([Instances((1, 1), a=range(2))] * 2)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(duplicate):
    assert values(duplicate(table())) == values(table())


def test_text_tells_sizes_and_fields():
    text = str(Instances((10, 20), scores=[0.5]))
    assert text == repr(Instances((10, 20), scores=[0.5]))
    for part in ("num_instances=1", "image_height=10", "image_width=20", "scores: [0.5]"):
        assert part in text
