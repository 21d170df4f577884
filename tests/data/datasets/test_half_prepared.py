"""Half-prepared and damaged public data sets: whatever is wrong, the message has the file and the command that makes
it."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.phrases import load_phrases
from uniperceiver_v2.data.datasets.questions import load_questions
from uniperceiver_v2.data.datasets.records import load_classification_training, load_detection_training
from uniperceiver_v2.data.datasets.texts import load_captions
from uniperceiver_v2.errors import LONGEST_MESSAGE, UserError
from uniperceiver_v2.reading import disk, explained

from .. import miniatures
from .test_shards import write_shard

REFS, INSTANCES = "refer/refcoco/refs(unc).p", "refer/refcoco/instances.json"
IMAGES, REGIONS = "visual_genome/image_data.json", "visual_genome/region_descriptions.json"
SPLITS = "visual_genome/densecap_splits.json"
ENTITIES = "flickr30k/entities"
CLIPS = "kinetics400/annotations/train.csv"
QUESTIONS = "vqa/v2_OpenEnded_mscoco_train2014_questions.json"
ANSWERS = "vqa/v2_mscoco_train2014_annotations.json"
PANOPTIC = "coco/annotations/panoptic_train2017.json"
ADE = "ADEChallengeData2016"
CLASSES = "imagenet/LOC_synset_mapping.txt"
OBJECTS, CAPTIONS = "coco/annotations/instances_train2017.json", "coco/annotations/captions_train2017.json"
KARPATHY = "coco/annotations/dataset_coco.json"
LVIS = "lvis/lvis_v1_train.json"

Change = Callable[[Path], object]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    miniatures.register_only(tmp_path, monkeypatch)
    miniatures.write_refer(tmp_path, {"train": [31], "val": [32]})
    miniatures.write_visual_genome(tmp_path, [(101, 1, None), (102, 2, None)])
    miniatures.write_json(tmp_path / SPLITS, {"train": [101], "val": [102], "test": []})
    miniatures.write_flickr30k_entities(tmp_path, "train", 7)
    miniatures.write_kinetics(tmp_path)
    miniatures.write_vqa(tmp_path)
    miniatures.write_panoptic(tmp_path)
    miniatures.write_ade20k(tmp_path)
    miniatures.write_imagenet(tmp_path, {"n02012849": "crane", "n01440764": "tench, Tinca tinca"})
    miniatures.write_coco(tmp_path, [1, 2])
    miniatures.write_coco_captions(tmp_path, [1, 2])
    miniatures.write_karpathy_coco(tmp_path, {"train": [1]})
    miniatures.write_lvis(tmp_path, [1])
    return tmp_path


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    """Remove what is in a folder."""
    for inside in path.iterdir():
        remove(inside)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def text(content: str) -> Change:
    return lambda path: path.write_text(content)


def edit(change: Callable) -> Change:
    """change(content of a JSON), which returns another content, or None where it has changed this one."""

    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        other = change(content)
        path.write_text(json.dumps(content if other is None else other))

    return apply


def without(*keys: str) -> Change:
    """Lists of a JSON that are made empty."""
    return edit(lambda content: content.update({key: [] for key in keys}))


def load(name: str) -> object:
    return load_dataset(name)


def detection(name: str) -> object:
    return load_detection_training([name], filter_empty=True, with_masks=True)


def classification(name: str) -> object:
    return load_classification_training([name])


def captions(name: str) -> object:
    return load_captions(name, tokenizer=None)


# The program, the dataset, how it is read, the file that is changed, and how.
DAMAGES = [
    ("refcoco.py", "refcoco_unc_train", load, REFS, cut),
    ("refcoco.py", "refcoco_unc_train", load, REFS, remove),
    ("refcoco.py", "refcoco_unc_train", load, REFS, lambda path: path.write_bytes(pickle.dumps({}))),
    ("refcoco.py", "refcoco_unc_testA", load, REFS, lambda path: None),  # a split that it does not have
    ("refcoco.py", "refcoco_unc_train", load, INSTANCES, remove),
    ("refcoco.py", "refcoco_unc_train", load, INSTANCES, edit(lambda c: c["images"].pop(0) and None)),
    ("refcoco.py", "refcoco_unc_train", load, INSTANCES, edit(lambda c: c["annotations"].pop(0) and None)),
    ("visual_genome.py", "visual_genome_captions_train", load, IMAGES, edit(lambda c: c[1:])),
    ("visual_genome.py", "visual_genome_captions_train", load, IMAGES, remove),
    ("visual_genome.py", "visual_genome_captions_train", load, IMAGES, cut),
    ("visual_genome.py", "visual_genome_captions_train", load, REGIONS, text("[]")),
    ("visual_genome.py", "visual_genome_captions_train", captions, REGIONS, text("[]")),
    ("visual_genome.py", "visual_genome_regions_train", load_phrases, REGIONS, cut),
    ("visual_genome.py", "visual_genome_region_captions_val", load, SPLITS, remove),
    ("visual_genome.py", "visual_genome_region_captions_val", load, SPLITS, text('{"val": [5]}')),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/Annotations/7.xml", cut),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/Annotations/7.xml", text("<a></a>")),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/Sentences/7.txt", cut),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/Sentences/7.txt", remove),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/train.txt", remove),
    ("flickr30k_entities.py", "flickr30k_entities_train", load, f"{ENTITIES}/train.txt", text("")),
    ("flickr30k_entities.py", "flickr30k_entities_train", load_phrases, f"{ENTITIES}/train.txt", text("x7")),
    ("kinetics.py", "kinetics400_train", load, CLIPS, text("a,b\n1,2\n")),
    ("kinetics.py", "kinetics400_train", load, CLIPS, text("label,youtube_id,time_start,time_end\nx,a,x,14\n")),
    ("kinetics.py", "kinetics400_train", load, "kinetics400/train", empty),
    ("vqa.py", "vqa_v2_train", load, ANSWERS, without("annotations")),
    ("vqa.py", "vqa_v2_train", load, ANSWERS, remove),
    ("vqa.py", "vqa_v2_train", load, QUESTIONS, without("questions")),
    ("coco_panoptic.py", "coco_panoptic_train", load, PANOPTIC, without("images")),
    ("coco_panoptic.py", "coco_panoptic_train", load, PANOPTIC, without("categories")),
    ("coco_panoptic.py", "coco_panoptic_train", load, PANOPTIC, without("annotations")),
    ("ade20k.py", "ade20k_train", load, f"{ADE}/objectInfo150.txt", remove),
    ("ade20k.py", "ade20k_train", load, f"{ADE}/objectInfo150.txt", text("Idx\tName\n1\twall\n2\twall\n")),
    ("ade20k.py", "ade20k_train", load, f"{ADE}/annotations/training", empty),
    ("ade20k.py", "ade20k_train", load, f"{ADE}/annotations/training/ADE_train_00000001.png", text("junk")),
    ("imagenet.py", "imagenet_train", classification, "imagenet/train/n01440764", remove),
    ("imagenet.py", "imagenet_train", classification, CLASSES, text("")),
    ("imagenet.py", "imagenet_train", classification, CLASSES, text("n01440764 tench\nn02012849 tench\n")),
    ("coco.py", "coco_2017_train", detection, OBJECTS, without("images", "annotations")),
    ("coco.py", "coco_2017_train", detection, OBJECTS, without("annotations")),
    ("coco.py", "coco_2017_train", detection, OBJECTS, edit(lambda c: c["annotations"][0].update(bbox=[1e9, 0, 1, 1]))),
    ("coco.py", "coco_2017_captions_train", load, CAPTIONS, edit(lambda c: c["annotations"][0].update(caption=3))),
    ("coco.py", "coco_2017_captions_train", load, CAPTIONS, edit(lambda c: c["annotations"][0].update(image_id=3))),
    ("coco.py", "coco_2017_captions_train", captions, CAPTIONS, without("annotations")),
    ("karpathy.py coco", "coco_2014_captions_karpathy_val", load, KARPATHY, lambda path: None),
    ("lvis_v1.py", "lvis_v1_train", detection, LVIS, without("images", "annotations")),
    ("lvis_v1.py", "lvis_v1_train", detection, LVIS, cut),
]


@pytest.mark.parametrize(
    ("program", "name", "read", "file", "change"),
    DAMAGES,
    ids=[f"{number}-{name}" for number, (_, name, *_) in enumerate(DAMAGES)],
)
def test_the_file_and_the_command_are_named(root, program, name, read, file, change):
    change(root / file)
    message = message_of(read, name)
    assert str(root / file) in message, message
    assert message.count(f"python datasets/prepare/{program}") == 1, message


def message_of(read: Callable, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("program", "name", "read", "file", "change", "words"),
    [
        (
            "imagenet.py",
            "imagenet_train",
            classification,
            "imagenet/train/n01440764",
            empty,
            "of imagenet_train: tench;",
        ),
        (
            *("coco.py", "coco_2017_train", detection, OBJECTS),
            *(edit(lambda c: c["annotations"][0].pop("segmentation") and None), "without segmentation"),
        ),
        (
            *("vqa.py", "vqa_v2_train", load_questions, ANSWERS),
            *(edit(lambda c: c["annotations"][0].update(answers=[])), "nobody has answered question 1001"),
        ),
    ],
)
def test_what_is_wrong_with_no_single_file_has_the_command_as_well(root, program, name, read, file, change, words):
    change(root / file)
    message = message_of(read, name)
    assert words in message and message.count(f"python datasets/prepare/{program}") == 1, message


def test_shards_of_the_web_and_of_a_corpus(root):
    shard = root / "cc3m/00000.tar"
    for content in (b"", b"junk" * 400):
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(content)
        message = message_of(load_dataset, "cc3m_train")
        assert str(shard) in message and message.count("python datasets/prepare/web_pairs.py cc3m") == 1
    write_shard(shard, {})
    message = message_of(load_dataset, "cc3m_train")
    assert "is empty" in message and message.count("python datasets/prepare/web_pairs.py cc3m") == 1
    miniatures.write_text(root / "bookcorpus/00000.txt", "")
    message = message_of(load_dataset, "bookcorpus_train")
    assert message.count("python datasets/prepare/corpus.py bookcorpus TEXTS") == 1


def test_a_long_message_still_ends_with_the_command(root):
    sentences = root / ENTITIES / "Sentences/7.txt"
    sentences.write_text(f"[/EN#1/people {'x' * 10_000}")
    message = message_of(load_dataset, "flickr30k_entities_train")
    assert len(message) < LONGEST_MESSAGE + 50 and message.count("shortened") == 1
    assert message.startswith(str(sentences)) and "python datasets/prepare/flickr30k_entities.py" in message


def test_only_what_names_other_files_is_said_to_name_them(root):
    (root / ENTITIES / "Sentences/7.txt").unlink()
    assert f", which {root / ENTITIES / 'train.txt'} names;" in message_of(load_dataset, "flickr30k_entities_train")
    (root / REFS).unlink()
    message = message_of(load_dataset, "refcoco_unc_train")
    assert str(root / REFS) in message and ", which" not in message


def test_a_disk_that_is_at_fault_is_no_reason_to_prepare_anything():
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught, explained("imagenet_val"):
        patch.setattr(disk, "WAITS", ())
        disk.patiently(fail, "a.txt")
    assert "the disk, the network or the machine" in str(caught.value) and "python " not in str(caught.value)
