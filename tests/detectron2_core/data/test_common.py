import itertools
import pickle

import pytest
from detectron2.data import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler


class Stream(IterableDataset):
    def __init__(self, elements):
        self.elements = elements

    def __iter__(self):
        return iter(self.elements)


@pytest.mark.parametrize("serialize", [True, False])
def test_list_gives_copies(serialize):
    records = [{"boxes": [1, 2]}, {"boxes": []}, {"boxes": [3]}]
    dataset = DatasetFromList(records, copy=True, serialize=serialize)
    assert len(dataset) == 3 and [dataset[i] for i in range(3)] == records
    dataset[0]["boxes"].append(9)
    assert dataset[0] == {"boxes": [1, 2]}


def test_list_without_copies():
    records = [{"boxes": []}]
    assert DatasetFromList(records, copy=False, serialize=False)[0] is records[0]


def test_list_with_its_own_storage():
    assert DatasetFromList([1, 2, 3], serialize=lambda elements: elements[::-1])[0] == 3
    with pytest.raises(TypeError):
        DatasetFromList([1], serialize="yes")


def test_map_dataset():
    dataset = MapDataset([1, 2, 3], lambda x: x * 10)
    assert len(dataset) == 3 and dataset[2] == 30


def test_map_dataset_survives_pickling_with_a_lambda():
    assert pickle.loads(pickle.dumps(MapDataset([1, 2, 3], lambda x: x * 10)))[1] == 20


def test_map_dataset_takes_another_element_for_a_broken_one():
    dataset = MapDataset(list(range(10)), lambda x: None if x < 9 else x)
    assert [dataset[i] for i in range(10)] == [9] * 10


def test_map_of_an_iterable_dataset_leaves_broken_elements_out():
    dataset = MapDataset(Stream([1, 2, 3, 4]), lambda x: x * 10 if x % 2 else None)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == [10, 30]


def test_iterable_in_the_order_of_a_sampler():
    dataset = ToIterableDataset([10, 20, 30], SequentialSampler(range(3)))
    assert list(dataset) == [10, 20, 30] and len(dataset) == 3


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(num_workers):
    elements = list(range(100, 120))
    batches = {}
    for workers in (0, num_workers):
        dataset = ToIterableDataset(elements, TrainingSampler(20, seed=3), shard_chunk_size=4)
        loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
        batches[workers] = list(itertools.islice(loader, 8))
    assert batches[0] == batches[num_workers]
    assert sorted(itertools.chain(*batches[0][:5])) == elements


def test_batches_of_one_orientation():
    sizes = [(20, 10), (10, 20), (10, 10), (30, 20), (15, 5), (5, 30), (40, 2)]
    elements = [{"width": w, "height": h, "number": i} for i, (w, h) in enumerate(sizes)]
    batches = list(AspectRatioGroupedDataset(elements, batch_size=2))
    assert [[e["number"] for e in batch] for batch in batches] == [[1, 2], [0, 3], [4, 6]]
