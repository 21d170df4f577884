"""What `python -m uniperceiver_v2.new` recognises in a folder, what it says, and what it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import load_file

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.kinds import KINDS
from uniperceiver_v2.new import choosing, program
from uniperceiver_v2.new.looking import TASKS

pytestmark = pytest.mark.usefixtures("catalogs")

HEIGHT, WIDTH = 100, 160


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    return Path("my data")


def picture(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(path)


def coco(folder: Path, name: str, images: list[str], outlined: bool = True) -> None:
    annotations = []
    for image in range(len(images)):
        for place in range(2):
            x, y, w, h = 10 + 60 * place, 20, 40, 25
            outline = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if outlined else {}
            annotations.append({"image_id": image, "category_id": 5 + 4 * place, "bbox": [x, y, w, h], **outline})
    entries = [{"id": n, "file_name": f, "height": HEIGHT, "width": WIDTH} for n, f in enumerate(images)]
    categories = [{"id": 5, "name": "boat"}, {"id": 9, "name": "buoy"}]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = program.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def written(path: str = "my data.yaml") -> dict:
    return yaml.safe_load(Path(path).read_text())


def test_coco_in_one_piece_is_split_and_everything_is_chosen_from_it(folder, capsys):
    names = [f"{n} ä.png" for n in range(10)]
    for name in names:
        picture(folder / "images" / name)
    (folder / "images" / names[3]).write_bytes((folder / "images" / names[3]).read_bytes()[:60])
    coco(folder, "annotations/all.json", names)
    (folder / "annotations/broken.json").write_text("{")
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    for expected in (
        "my_data_objects: objects in COCO's format (my data/annotations/all.json)",
        "10 pictures of 160 x 100 pixels",
        "2 categories: boat 10, buoy 10",
        "broken files: 2\n",
        "3 ä.png",
        "broken.json cannot be read as a whole JSON file",
        "my_data_objects_test: 1 picture to test on",
        "objects: 8 pictures to train on",
        "train_net.py --config-file 'my data.yaml'",
    ):
        assert expected in out
    settings = written()
    custom = settings["DATASETS"]["CUSTOM"]
    assert {name: (node["PART"], node["IMAGES"]) for name, node in custom.items()} == {
        "my_data_objects_train": ("train", "my data/images"),
        "my_data_objects_test": ("test", "my data/images"),
    }
    assert settings["TASKS"]["objects"]["DATASETS"] == ["my_data_objects_train"]
    assert settings["DATASETS"]["TEST"] == ["my_data_objects_test"]
    assert settings["TEST"]["BEST_METRIC"] == "my_data_objects_test/bbox/AP"
    assert settings["INPUT"]["MIN_SIZE_TEST"] == 96 and settings["INPUT"]["MAX_SIZE_TEST"] == 160
    assert settings["MODEL"]["MASK_ON"] is True
    assert settings["MODEL"]["UNIPERCEIVER_V2"]["REGION"]["ANCHOR_SIZE"] == 0.25  # sqrt(40 * 25 / (100 * 160))
    assert settings["SOLVER"]["MAX_ITER"] == choosing.FEWEST
    assert [node["LEFT_OUT"] for node in custom.values()] == [["my data/images/3 ä.png"]] * 2
    cfg = load_config("my data.yaml")
    assert {r["image_id"] for n in custom for r in load_dataset(n)} == set(range(10)) - {3}
    assert cfg.TASKS.objects.KIND == "detection"


def test_more_data_gets_more_iterations_and_a_checkpoint_a_smaller_rate(folder, capsys):
    for n in range(400):
        path = folder / ("class a" if n % 2 else "class b") / f"{n}.png"
        picture(path, 40, 48)
    Path("best.pth").write_bytes(b"")
    assert run(capsys, "my data", "--weights", "best.pth", "--output", "run.yaml")[0] == 0
    settings = written("run.yaml")
    assert settings["SOLVER"]["MAX_ITER"] == 800  # 40 epochs of 320 pictures in batches of 16
    assert settings["SOLVER"]["BASE_LR"] == 0.0002
    assert settings["MODEL"] == {"WEIGHTS": "best.pth"}
    assert settings["TASKS"]["classes"]["IMAGE_SIZE"] == 32
    assert settings["OUTPUT_DIR"] == "output/run"
    load_config("run.yaml")
    sizes = [len(load_dataset(name)) for name in settings["DATASETS"]["CUSTOM"]]
    assert sum(sizes) == 400 and 60 < sizes[1] < 100


def test_splits_that_exist_are_kept(folder, capsys):
    for split in ("train", "val"):
        names = [f"{n}.png" for n in range(4)]
        for name in names:
            picture(folder / split / name)
        coco(folder, f"instances_{split}2017.json", names, outlined=False)
    assert run(capsys, "my data")[0] == 0
    settings = written()
    nodes = settings["DATASETS"]["CUSTOM"]
    assert {name: node["IMAGES"] for name, node in nodes.items()} == {
        "my_data_objects_train": "my data/train",
        "my_data_objects_val": "my data/val",
    }
    assert settings["TASKS"]["objects"]["DATASETS"] == ["my_data_objects_train"]
    assert settings["DATASETS"]["TEST"] == ["my_data_objects_val"]
    assert settings["MODEL"]["MASK_ON"] is False


def test_yolo_and_voc(folder, capsys):
    for split in ("train", "val"):
        for n in range(2):
            picture(folder / "yolo/images" / split / f"{n}.png")
            text = folder / "yolo/labels" / split / f"{n}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("3 0.5 0.5 0.2 0.2\n")
    (folder / "yolo/data.yaml").write_text("names: {3: boat}\ntrain: images/train\nval: images/val\n")
    xml = "<annotation><filename>a{}.jpg</filename><object><name>boat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    xml += "<xmax>50</xmax><ymax>50</ymax></bndbox></object></annotation>"
    for n in range(4):
        picture(folder / f"voc/JPEGImages/a{n}.jpg")
        (folder / "voc/Annotations").mkdir(exist_ok=True)
        (folder / f"voc/Annotations/a{n}.xml").write_text(xml.format(n))
    (folder / "voc/ImageSets/Main").mkdir(parents=True)
    (folder / "voc/ImageSets/Main/train.txt").write_text("a0\na1\na2\n")
    (folder / "voc/ImageSets/Main/val.txt").write_text("a3\n")
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    settings = written()
    assert {name: node["FORMAT"] for name, node in settings["DATASETS"]["CUSTOM"].items()} == {
        "my_data_objects_train": "yolo",
        "my_data_objects_val": "yolo",
        "my_data_objects_train_2": "voc",
        "my_data_objects_val_2": "voc",
    }
    assert settings["TASKS"]["objects"]["DATASETS"] == ["my_data_objects_train", "my_data_objects_train_2"]
    assert settings["DATASETS"]["TEST"] == ["my_data_objects_val", "my_data_objects_val_2"]
    assert "1 category: boat 3" in out and "broken files: 0" in out


def test_pictures_that_cannot_be_read_and_those_of_no_dataset_are_told(folder, capsys):
    for n in range(4):
        picture(folder / f"images/train/{n}.png")
        text = folder / f"labels/train/{n}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "images/train/1.png").write_bytes(b"nothing")  # not even a size
    (folder / "images/train/2.png").write_bytes((folder / "images/train/2.png").read_bytes()[:60])  # a size alone
    picture(folder / "another.jpg")
    (folder / "data.yaml").write_text("names: [boat]\ntrain: images/train\n")
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    assert "broken files: 2\n" in out and "1.png: cannot identify" in out and "2.png: image file is truncated" in out
    assert "pictures that belong to none of these: 1\n" in out
    assert "objects: 1 picture to train on" in out and "_test: 1 picture to test on" in out


def test_a_picture_of_another_size_than_its_annotation_says_is_left_out(folder, capsys):
    names = [f"{n}.png" for n in range(5)]
    for name in names:
        picture(folder / name, *((WIDTH, HEIGHT) if name == "2.png" else (HEIGHT, WIDTH)))  # turned by a phone
    coco(folder, "all.json", names)
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    assert "2.png: it has 100 x 160 pixels, its annotation 160 x 100" in out
    assert written()["DATASETS"]["CUSTOM"]["my_data_objects_train"]["LEFT_OUT"] == ["my data/2.png"]


def test_the_best_checkpoint_is_chosen_on_the_validation_set(folder, capsys):
    for split in ("test", "train", "val"):
        for name in ("cat", "dog"):
            picture(folder / split / name / "1.jpg")
    assert run(capsys, "my data")[0] == 0
    settings = written()
    assert settings["DATASETS"]["TEST"] == ["my_data_classes_val", "my_data_classes_test"]
    assert settings["TEST"]["BEST_METRIC"] == "my_data_classes_val/classification/top1"


def test_data_that_do_not_fit_together_are_told_after_writing(folder, capsys):
    for name, species in (("one", "cat"), ("two", "dog")):
        picture(folder / f"{name}1.png")
        picture(folder / f"{name}2.png")
        (folder / f"{name}.csv").write_text(f"image,class\n{name}1.png,{species}\n{name}2.png,{species}\n")
    code, out, err = run(capsys, "my data")
    assert code == 1 and "my data.yaml is written" in out
    assert err.startswith("error: datasets ") and "of one task have different classes" in err


@pytest.mark.parametrize("outlined", [True, False])
def test_fine_tuning_begins_with_the_zoos_model(folder, capsys, outlined):
    names = [f"{n}.png" for n in range(4)]
    for name in names:
        picture(folder / name)
    coco(folder, "all.json", names, outlined)
    assert run(capsys, "my data", "--weights", "digit_scenes/small")[0] == 0
    settings = written()
    assert settings["SOLVER"]["BASE_LR"] == 0.0002
    cfg = load_config("my data.yaml")
    assert cfg.MODEL.WEIGHTS.endswith("model.safetensors") and cfg.MODEL.MASK_ON is outlined
    model = build_model(cfg)
    AtomicCheckpointer(model).load(cfg.MODEL.WEIGHTS)  # all of it fits
    state = load_file(cfg.MODEL.WEIGHTS)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in model.state_dict().items())


def test_captions_phrases_and_tables(folder, capsys):
    images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(6)]
    for n in range(6):
        picture(folder / f"pictures/{n}.png")
    captions = [{"id": n, "image_id": n, "caption": "a boat"} for n in range(6)]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    phrases = [{"id": n, "image_id": n, "phrase": "a boat", "bboxes": [[1, 1, 50, 50]]} for n in range(6)]
    (folder / "p.json").write_text(json.dumps({"images": images, "annotations": phrases}))
    (folder / "labels.csv").write_text("file;kind\n" + "".join(f"{n}.png;{'ab'[n % 2]}\n" for n in range(6)))
    (folder / "texts.csv").write_text('"id, or a number","text"\n1,boats\n2,birds\n3,more boats\n')
    code, _, err = run(capsys, "my data")
    assert code == 0, err
    settings = written()
    kinds = {name: task["KIND"] for name, task in settings["TASKS"].items() if name != "NAMES"}
    assert kinds == {
        "captions": "captioning",
        "phrases": "grounding",
        "classes": "classification",
        "texts": "language_modelling",
    }
    assert settings["DATASETS"]["CUSTOM"]["my_data_classes_train"]["COLUMNS"] == ["file", "kind"]
    assert all(load_dataset(name) for name in settings["DATASETS"]["CUSTOM"])


def test_texts_alone_are_a_corpus(folder, capsys):
    (folder / "train.txt").write_text("one\ntwo\nthree\n")
    (folder / "test.txt").write_text("four\n")
    assert run(capsys, "my data")[0] == 0
    settings = written()
    assert settings["DATASETS"]["TEST"] == ["my_data_texts_test"] and "INPUT" not in settings


def test_every_metric_to_choose_by_is_a_column_of_its_kind():
    for evaluator_type, (_, kind, metric) in TASKS.items():
        assert evaluator_type in KINDS[kind].evaluators
        assert metric.rpartition("/")[2] in KINDS[kind].columns
        settings = set(choosing._SETTINGS[kind])
        assert settings <= set(KINDS[kind].settings.defaults(kind))


def test_every_kind_of_picture_that_can_be_read_is_found(folder, capsys):
    for name in ("cat", "dog"):
        for ending in ("gif", "jfif", "webp"):
            picture(folder / name / f"1.{ending}")
        (folder / name / "notes.txt").write_text("no picture")
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    assert "6 pictures of 160 x 100 pixels" in out and "2 categories: cat 3, dog 3" in out


def test_whole_paths_name_pictures_too(folder, capsys):
    for n in range(3):
        picture(folder / f"images/{n}.png")
    coco(folder, "all.json", [str((folder / f"images/{n}.png").resolve()) for n in range(3)])
    code, out, err = run(capsys, "my data")
    assert code == 0, err
    assert "3 pictures of 160 x 100 pixels" in out and "broken files: 0" in out


def test_a_file_that_cannot_be_used_does_not_make_its_folder_of_pictures_a_class(folder, capsys):
    for n in range(3):
        picture(folder / f"images/{n}.png")
    coco(folder, "all.json", ["other.png"])
    code, _, err = run(capsys, "my data")
    assert code == 1 and "names the image 'other.png', which is nowhere in my data" in err
    content = json.loads((folder / "all.json").read_text())
    (folder / "all.json").write_text(json.dumps({**content, "annotations": {"1": {}}}))
    code, _, err = run(capsys, "my data")
    assert code == 1 and "my data has no data that can be used" in err


def test_objects_without_any_annotation_are_told(folder, capsys):
    for n in range(3):
        picture(folder / f"images/{n}.png")
    coco(folder, "all.json", [f"{n}.png" for n in range(3)])
    content = json.loads((folder / "all.json").read_text())
    (folder / "all.json").write_text(json.dumps({**content, "annotations": []}))
    code, _, err = run(capsys, "my data")
    assert code == 1 and err.startswith("error: no image of my_data_objects_train has an object to learn: ")
    assert "my data/all.json; expected: a JSON with" in err


def test_mistakes_are_one_sentence(folder, capsys):
    for arguments, expected in (
        (("nowhere",), "error: there is no folder nowhere"),
        (("my data",), "error: my data has no data that can be used. It knows a JSON with"),
        (("my data", "--base", "nowhere.yaml"), "error: --base: there is no configuration nowhere.yaml"),
        (
            ("my data", "--base", str(TINY_CONFIG), "--weights", "digit_scenes/small"),
            "error: --weights: digit_scenes/small of the zoo comes with its own configuration; leave out --base",
        ),
        (
            ("my data", "--weights", "digit_scene/smal"),
            "error: --weights: there is no checkpoint digit_scene/smal; the",
        ),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 1 and err.startswith(expected) and err.count("\n") == 1
    Path("my data.yaml").write_text("mine")
    code, _, err = run(capsys, "my data")
    assert code == 1 and "my data.yaml exists already" in err
    assert Path("my data.yaml").read_text() == "mine"
    Path("my data.yaml").unlink()
    coco(folder, "all.json", ["nowhere.png"])
    code, _, err = run(capsys, "my data")
    assert code == 1 and "names the image 'nowhere.png', which is nowhere in my data" in err


def test_a_configuration_in_the_working_folder_names_its_base_from_there(folder, capsys):
    for n in range(4):
        picture(folder / "a" / f"{n}.png")
        picture(folder / "b" / f"{n}.png")
    Path("configs").mkdir()
    shutil.copytree(TINY_CONFIG.parents[1], "configs", dirs_exist_ok=True)
    base = "configs/digit_scenes/uniperceiver_v2_tiny.yaml"
    assert run(capsys, "my data", "--base", base, "--output", "configs/own.yaml")[0] == 0
    assert written("configs/own.yaml")["_BASE_"] == "digit_scenes/uniperceiver_v2_tiny.yaml"
    assert load_config("configs/own.yaml").TASKS.NAMES == ["classes"]
