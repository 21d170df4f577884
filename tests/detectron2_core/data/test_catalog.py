import pytest
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog


def test_dataset_is_loaded_at_every_get(name):
    calls = []

    def load():
        calls.append(1)
        return [{"file_name": "a.png"}]

    DatasetCatalog.register(name, load)
    assert not calls
    assert DatasetCatalog.get(name) == DatasetCatalog.get(name) == [{"file_name": "a.png"}]
    assert len(calls) == 2
    assert name in DatasetCatalog and name in DatasetCatalog.list()
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog.list()


def test_name_is_registered_once(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)


def test_only_functions_are_registered(name):
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, [])


def test_unknown_dataset_is_named_with_those_that_exist(name):
    with pytest.raises(KeyError, match=r"no_such_dataset.*not registered.*coco_2017_val"):
        DatasetCatalog.get("no_such_dataset")


def test_metadata_of_a_name_is_one_object(name):
    metadata = MetadataCatalog.get(name)
    assert metadata is MetadataCatalog.get(name)
    assert isinstance(metadata, Metadata) and metadata.name == name
    assert name in MetadataCatalog.list()
    MetadataCatalog.remove(name)
    assert MetadataCatalog.get(name) is not metadata


def test_metadata_attributes(name):
    metadata = MetadataCatalog.get(name).set(thing_classes=["cat"], json_file="a.json")
    assert metadata.thing_classes == ["cat"]
    assert metadata.get("json_file") == "a.json"
    assert metadata.get("stuff_classes") is None and metadata.get("stuff_classes", 3) == 3
    assert metadata.as_dict() == {"name": name, "thing_classes": ["cat"], "json_file": "a.json"}
    metadata.as_dict()["more"] = 1
    assert not hasattr(metadata, "more")


def test_metadata_may_be_set_again_to_the_same(name):
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = ["cat", "dog"]
    metadata.thing_classes = ["cat", "dog"]
    with pytest.raises(AssertionError, match="cannot be set to a different value"):
        metadata.thing_classes = ["dog", "cat"]


def test_missing_metadata_is_named(name):
    with pytest.raises(AttributeError, match=r"'thing_classes' does not exist in the metadata of dataset"):
        _ = MetadataCatalog.get(name).thing_classes
