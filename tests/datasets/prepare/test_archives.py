"""Datasets that are published as archives: what the programs make of them is what the readers read."""

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from scipy.io import savemat

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.records import candidate_names
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY

from ...data import miniatures
from .conftest import tar_of, write_tar, write_zip


@pytest.fixture
def registered(root, monkeypatch) -> Path:
    miniatures.register_only(root, monkeypatch)
    return root


def test_all_that_is_missing_is_said_at_once(prepare, root):
    status, told = prepare("coco")
    assert status == 1
    for file in ("train2017.zip (18 GB)", "val2017.zip (780 MB)", "annotations_trainval2017.zip (240 MB)"):
        assert f"expected {file} in {root / 'downloads'}, from https://cocodataset.org" in told
    assert f"{root / 'coco/train2017'} is not there" in told
    assert f"run again: python datasets/prepare/coco.py --root {root}" in told


def test_coco_and_lvis(prepare, registered, downloads):
    root = registered
    miniatures.write_coco(root, [1, 2])
    miniatures.write_coco(root, [3], "val2017")
    for split, ids in (("train2017", [1, 2]), ("val2017", [3])):
        miniatures.write_coco_captions(root, ids, split)
    miniatures.write_lvis(root, [1, 2])
    miniatures.write_lvis(root, [2], "val")
    for split in ("train", "val"):
        write_zip(downloads / f"{split}2017.zip", root / "coco", f"{split}2017")
        shutil.rmtree(root / "coco" / f"{split}2017")
        write_zip(downloads / f"lvis_v1_{split}.json.zip", root / "lvis", f"lvis_v1_{split}.json")
    write_zip(downloads / "annotations_trainval2017.zip", root / "coco", "annotations")
    message = _message("coco_2017_train")
    assert str(root / "coco/annotations/instances_train2017.json") in message
    assert "python datasets/prepare/coco.py" in message and "datasets/prepare/lvis_v1.py" in _message("lvis_v1_val")
    assert prepare("lvis_v1")[0] == prepare("coco")[0] == 0
    for name, count in {"coco_2017_train": 2, "coco_2017_val": 1, "lvis_v1_train": 2, "lvis_v1_val": 1}.items():
        records = load_dataset(name)
        assert len(records) == count and all(Path(record["file_name"]).is_file() for record in records)
    shutil.rmtree(downloads)
    assert prepare("coco")[0] == 0  # nothing is left to do


def _message(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(name)
    return str(caught.value)


def test_karpathys_splits_with_the_images_of_2017(prepare, registered, downloads):
    root = registered
    miniatures.write_karpathy_coco(root, {"train": [1, 2], "restval": [3], "val": [4], "test": [5]})
    miniatures.write_flickr30k(root, {"train": [7], "test": [8, 9]})
    with zipfile.ZipFile(downloads / "caption_datasets.zip", "w") as archive:
        for path in (root / "coco/annotations/dataset_coco.json", root / "flickr30k/dataset_flickr30k.json"):
            archive.write(path, path.name)
            path.unlink()
    write_tar(downloads / "flickr30k-images.tar.gz", root / "flickr30k", "flickr30k-images")
    shutil.rmtree(root / "flickr30k")
    for year14, year17, ids in (("train2014", "train2017", (1, 2)), ("val2014", "train2017", (3, 4))):
        for i in ids:  # image 5 stays as it is in 2014
            (root / "coco" / year17).mkdir(exist_ok=True)
            name = miniatures.coco_name(i, year14)
            (root / "coco" / year14 / name).rename(root / "coco" / year17 / f"{i:012d}.jpg")
    assert "datasets/prepare/karpathy.py coco" in _message("coco_2014_captions_karpathy_test")
    status, told = prepare("karpathy")
    assert status == 0 and "5 images of COCO, 4 of them new links" in told
    for name, count in {
        "coco_2014_captions_karpathy_train": 3,
        "coco_2014_retrieval_karpathy_test": 1,
        "flickr30k_retrieval_karpathy_test": 2,
    }.items():
        records = load_dataset(name)
        assert len(records) == count and all(Path(record["file_name"]).is_file() for record in records)
    (root / "coco/train2017/000000000002.jpg").unlink()
    status, told = prepare("karpathy", "coco")
    assert status == 1 and "1 of 5 images are not there, such as" in told and "datasets/prepare/coco.py" in told


def test_visual_genome(prepare, registered, downloads):
    folder = registered / "visual_genome"
    miniatures.write_visual_genome(registered, [(1, 7, 8), (2, None, None)])
    (folder / "VG_100K_2").mkdir()
    image_data = folder / "image_data.json"
    image_data.write_text(image_data.read_text().replace("VG_100K/2.jpg", "VG_100K_2/2.jpg"))
    (folder / "VG_100K/2.jpg").rename(folder / "VG_100K_2/2.jpg")
    for name, holds in (("images", "VG_100K"), ("images2", "VG_100K_2")):
        write_zip(downloads / f"{name}.zip", folder, holds)
    for name in ("image_data.json", "region_descriptions.json"):
        write_zip(downloads / f"{name}.zip", folder, name)
    shutil.rmtree(folder)
    status, told = prepare("visual_genome")
    assert status == 1 and f"{folder / 'densecap_splits.json'} is not there; expected densecap_splits.json" in told
    miniatures.write_json(downloads / "densecap_splits.json", {"train": [1], "val": [2], "test": []})
    assert prepare("visual_genome")[0] == 0
    assert [record["image_id"] for record in load_dataset("visual_genome_region_captions_val")] == [2]
    captions = load_dataset("visual_genome_captions_train")
    assert [record["captions"] for record in captions] == [["boat number 0", "boat number 1"]] * 2
    assert all(Path(record["file_name"]).is_file() for record in captions)
    assert captions[0]["photos"] == ["coco:7", "flickr:8"]
    assert [len(record["phrases"]) for record in load_dataset("visual_genome_regions_train")] == [2, 2]


def test_refcoco(prepare, registered, downloads):
    root = registered
    for folder, divisions in (("refcoco", ("unc", "google")), ("refcoco+", ("unc",)), ("refcocog", ("umd", "google"))):
        for by in divisions:
            miniatures.write_refer(root, {"train": [1, 2], "val": [3]}, folder, by)
        write_zip(downloads / f"{folder}.zip", root / "refer", folder)
    shutil.rmtree(root / "refer")
    (root / "coco/train2014").rename(root / "images_of_2014")
    status, told = prepare("refcoco")
    assert status == 1 and "3 of 3 images are not there" in told
    (root / "images_of_2014").rename(root / "coco/train2014")
    assert prepare("refcoco")[0] == 0
    for name in ("refcoco_unc_val", "refcoco+_unc_val", "refcocog_umd_val"):
        assert [record["image_id"] for record in load_dataset(name)] == [3]


def test_flickr30k_entities(prepare, registered, downloads):
    miniatures.write_flickr30k(registered, {"test": [1000092795]})
    xml = (
        "<annotation><size><width>64</width><height>48</height></size><object><name>1</name><bndbox><xmin>1</xmin>"
        "<ymin>3</ymin><xmax>21</xmax><ymax>33</ymax></bndbox></object></annotation>"
    )
    with zipfile.ZipFile(downloads / "annotations.zip", "w") as inner:
        inner.writestr("Annotations/1000092795.xml", xml)
        inner.writestr("Sentences/1000092795.txt", "[/EN#1/people A guy] waits .\n")
    with zipfile.ZipFile(downloads / "flickr30k_entities-master.zip", "w") as outer:
        for split in ("train", "val", "test"):
            outer.writestr(f"flickr30k_entities-master/{split}.txt", "1000092795\n")
        outer.write(downloads / "annotations.zip", "flickr30k_entities-master/annotations.zip")
    (downloads / "annotations.zip").unlink()  # the one in the other remains
    assert prepare("flickr30k_entities")[0] == 0
    (record,) = load_dataset("flickr30k_entities_test")
    assert record["phrases"] == [{"phrase": "A guy", "objects": [0]}]


@pytest.fixture
def imagenet(downloads):
    """The three archives of ImageNet with two classes, two training images of each, and three validation images."""
    image = miniatures.write_image(downloads / "x.jpg").read_bytes()
    train = {
        f"{folder}.tar": tar_of({f"{folder}_{n}.JPEG": image for n in (3, 12)}) for folder in ("n02012849", "n01440764")
    }
    (downloads / "ILSVRC2012_img_train.tar").write_bytes(tar_of(train))
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": image for n in (1, 2, 3)}
    (downloads / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
    fields = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    synsets = [(1, "n02012849", "crane", 0), (2, "n01440764", "tench, Tinca tinca", 0), (1001, "n00001740", "thing", 2)]
    savemat(downloads / "meta.mat", {"synsets": np.array(synsets, dtype=fields)[:, None]})
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": (downloads / "meta.mat").read_bytes(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n",
    }
    (downloads / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar_of(kit)))


def test_imagenet(prepare, registered, imagenet):
    assert "python datasets/prepare/imagenet.py" in _message("imagenet_val")
    assert prepare("imagenet")[0] == 0
    labels = [record["label"] for record in load_dataset("imagenet_train")]
    assert labels == [0, 0, 1, 1] and candidate_names("imagenet_train") == ("tench", "crane bird")
    names = [(Path(r["file_name"]).name, r["label"]) for r in load_dataset("imagenet_val")]
    assert names == [(f"ILSVRC2012_val_{n:08d}.JPEG", label) for n, label in ((1, 0), (3, 0), (2, 1))]
    assert prepare("imagenet")[0] == 0
    bare = registered / "imagenet/train/n01440764"
    shutil.rmtree(bare)
    status, told = prepare("imagenet")
    assert status == 1 and f"1 of 4 folders of classes have no images, such as {bare}; remove {bare.parent}, " in told
    shutil.rmtree(bare.parent)
    assert prepare("imagenet")[0] == 0
    shutil.rmtree(registered / "imagenet/val")
    (registered / "downloads/ILSVRC2012_devkit_t12.tar.gz").unlink()
    status, told = prepare("imagenet")
    assert status == 1 and "expected ILSVRC2012_devkit_t12.tar.gz" in told


def test_damaged_and_hostile_archives_leave_nothing(prepare, root, downloads):
    archive = downloads / "lvis_v1_train.json.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../outside.json", "{}")
    for split in ("train", "val"):
        (root / "coco" / f"{split}2017").mkdir(parents=True)
    status, told = prepare("lvis_v1")
    assert status == 1 and "lies outside" in told and not list(root.parent.rglob("outside.json"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    status, told = prepare("lvis_v1")
    assert status == 1 and str(archive) in told
    assert not list((root / "lvis").rglob("*"))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("lvis_v0.5_train.json", "{}")
    status, told = prepare("lvis_v1")
    assert status == 1 and "it is not the archive of https://www.lvisdataset.org" in told


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("[jl]*/uniperceiver*.yaml")), ids=lambda p: p.stem
)
def test_every_dataset_of_the_papers_configurations_has_a_program(path):
    cfg = load_config(str(path))
    trained = (name for task in cfg.TASKS.NAMES for name in cfg.TASKS[task].DATASETS)
    for name in {*trained, *cfg.DATASETS.TEST}:
        _, program, *_ = MetadataCatalog.get(name).prepare_command.split()
        assert (REPOSITORY / program).is_file(), name


def test_vqa_with_the_images_of_2017(prepare, registered, downloads):
    root = registered
    (root / "vqa").mkdir(parents=True)
    for split, image_id in (("train", 1), ("val", 2)):
        questions = [{"question_id": 10 * image_id, "image_id": image_id, "question": "how many?"}]
        answers = [{"question_id": 10 * image_id, "question_type": "how many", "answer_type": "number", "answers": []}]
        files = {
            f"v2_OpenEnded_mscoco_{split}2014_questions.json": ("Questions", {"questions": questions}),
            f"v2_mscoco_{split}2014_annotations.json": ("Annotations", {"annotations": answers}),
        }
        for name, (what, content) in files.items():
            miniatures.write_json(root / "vqa" / name, content)
            write_zip(downloads / f"v2_{what}_{split.title()}_mscoco.zip", root / "vqa", name)
        miniatures.write_image(root / "coco" / f"{split}2017" / f"{image_id:012d}.jpg", image_id)
    shutil.rmtree(root / "vqa", ignore_errors=True)
    status, told = prepare("vqa")
    assert status == 0, told
    assert "2 images of COCO, 2 of them new links" in told
    for split in ("train", "val"):
        (record,) = load_dataset(f"vqa_v2_{split}")
        assert Path(record["file_name"]).is_file()


def test_panoptic_annotations_are_unpacked_twice(prepare, registered, downloads):
    """COCO publishes an archive of archives."""
    folder = registered / "coco"
    for split in ("train", "val"):
        miniatures.write_image(registered / "images" / f"{split}2017" / "000000000001.jpg")
        miniatures.write_image(folder / f"panoptic_{split}2017" / "000000000001.png")
        (folder / "annotations").mkdir(exist_ok=True)
        write_zip(folder / "annotations" / f"panoptic_{split}2017.zip", folder, f"panoptic_{split}2017")
        shutil.rmtree(folder / f"panoptic_{split}2017")
        miniatures.write_json(folder / "annotations" / f"panoptic_{split}2017.json", {})
    write_zip(downloads / "panoptic_annotations_trainval2017.zip", folder, "annotations")
    shutil.rmtree(folder)
    status, told = prepare("coco_panoptic")
    assert status == 1 and "expected train2017.zip" in told and "expected panoptic" not in told
    for split in ("train", "val"):
        (registered / "images" / f"{split}2017").rename(folder / f"{split}2017")
    status, told = prepare("coco_panoptic")
    assert status == 0, told
    assert (folder / "annotations/panoptic_val2017.json").is_file()
    assert (folder / "panoptic_train2017/000000000001.png").is_file()
    shutil.rmtree(folder / "panoptic_train2017")
    (folder / "annotations/panoptic_train2017.zip").unlink()
    assert prepare("coco_panoptic")[0] == 0
    assert (folder / "panoptic_train2017/000000000001.png").is_file()


def test_ade20k(prepare, registered, downloads):
    folder = registered / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            miniatures.write_image(folder / kind / split / f"ADE_{split}_00000001.{ending}")
    (folder / "objectInfo150.txt").write_text(miniatures.ADE20K_NAMES)
    write_zip(downloads / "ADEChallengeData2016.zip", registered, "ADEChallengeData2016")
    shutil.rmtree(folder)
    status, told = prepare("ade20k")
    assert status == 0, told
    assert [len(load_dataset(f"ade20k_{split}")) for split in ("train", "val")] == [1, 1]


def test_kinetics_is_checked_and_clips_that_are_missing_are_listed(prepare, registered):
    folder = registered / "kinetics400"
    status, told = prepare("kinetics")
    assert status == 1
    for split in ("train", "val"):
        assert f"{folder / 'annotations' / split}.csv is not there; expected {split}.csv of https://github.com/" in told
    (folder / "annotations").mkdir(parents=True)
    rows = ("archery,abc,4,14", "archery,gone,0,10", "juggling,-xyz,0,10")
    for split in ("train", "val"):
        lines = ["label,youtube_id,time_start,time_end,split", *(f"{row},{split}" for row in rows)]
        (folder / f"annotations/{split}.csv").write_text("\n".join(lines))
    status, told = prepare("kinetics")
    assert status == 1 and f"tar -xzf part_0.tar.gz -C {folder / 'val'}" in told
    for split in ("train", "val"):
        (folder / split / "-xyz_000000_000010").mkdir(parents=True)
        (folder / split / "abc_000004_000014.mp4").write_bytes(b"a video")
    status, told = prepare("kinetics")
    assert status == 0 and "val has 2 of 3 clips" in told
    assert (folder / "annotations/missing_val.txt").read_text() == "gone_000000_000010\n"
    assert [r["image_id"] for r in load_dataset("kinetics400_val")] == ["abc_000004_000014", "-xyz_000000_000010"]
    (folder / "annotations/val.csv").write_text("label,youtube_id\narchery,abc\n")
    status, told = prepare("kinetics")
    assert status == 1 and f"{folder / 'annotations/val.csv'}: " in told and "time_start" in told


COCO, REFER, ENTITIES, ADE = "coco", "refer", "flickr30k/entities", "ADEChallengeData2016"


@pytest.mark.parametrize(
    ("program", "there", "told"),
    [
        (
            "coco",
            (f"{COCO}/annotations/instances_train2017.json", f"{COCO}/train2017/", f"{COCO}/val2017/"),
            (
                f"{COCO}/train2017 is empty; expected train2017.zip",
                f"{COCO}/val2017 is empty; expected val2017.zip",
                f"{COCO}/annotations/instances_val2017.json is not there, ",
                f"{COCO}/annotations/captions_train2017.json is not there, ",
                f"{COCO}/annotations/captions_val2017.json is not there; expected annotations_trainval2017.zip",
            ),
        ),
        (
            "refcoco",
            [f"{REFER}/{name}/instances.json" for name in ("refcoco", "refcoco+", "refcocog")],
            (
                f"{REFER}/refcoco/refs(unc).p is not there, ",
                f"{REFER}/refcoco/refs(google).p is not there; expected refcoco.zip",
                f"{REFER}/refcoco+/refs(unc).p is not there; expected refcoco+.zip",
                f"{REFER}/refcocog/refs(umd).p is not there, ",
            ),
        ),
        (
            "flickr30k_entities",
            (f"{ENTITIES}/Sentences/1.txt", *(f"{ENTITIES}/{split}.txt" for split in ("train", "val", "test"))),
            (
                f"{ENTITIES}/Annotations is not there; expected annotations.zip",
                "flickr30k/flickr30k-images is not there; expected flickr30k-images.tar.gz",
            ),
        ),
        (
            "ade20k",
            (f"{ADE}/objectInfo150.txt", f"{ADE}/images/training/1.jpg", f"{ADE}/annotations/training/"),
            (
                f"{ADE}/images/validation is not there, ",
                f"{ADE}/annotations/training is empty, ",
                f"{ADE}/annotations/validation is not there; expected {ADE}.zip",
            ),
        ),
        (
            "karpathy",
            ("flickr30k/dataset_flickr30k.json", "flickr30k/flickr30k-images/", "coco/annotations/dataset_coco.json"),
            ("flickr30k/flickr30k-images is empty; expected flickr30k-images.tar.gz",),
        ),
        (
            "coco_panoptic",
            (f"{COCO}/annotations/panoptic_train2017.json",),
            (f"{COCO}/annotations/panoptic_val2017.json is not there; expected panoptic_annotations_trainval2017.zip",),
        ),
        (
            "imagenet",
            ("imagenet/train/", "imagenet/val/n1/1.JPEG", "imagenet/LOC_synset_mapping.txt"),
            ("imagenet/train is empty; expected ILSVRC2012_img_train.tar",),
        ),
    ],
)
def test_a_part_of_a_tree_is_not_taken_for_all_of_it(prepare, root, program, there, told):
    for name in there:
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.write_text("{}")
    status, said = prepare(program)
    assert status == 1 and all(f"{root}/{words}" in said for words in told), said
    assert not any(f"{root / name} is " in said for name in there if not name.endswith("/")), said
