"""Configurations that are no configurations, or whose values cannot be used: one message, with the file or the key."""

import json

import pytest
import yaml
from detectron2.config import get_cfg

from uniperceiver_v2.config import add_uniperceiver_v2_config, load, load_config
from uniperceiver_v2.config.load import MOST_BASES
from uniperceiver_v2.config.ranges import LARGEST_SIZE, MOST_WORKERS, RANGES
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.reading import documents, read_yaml
from uniperceiver_v2.reading.documents import DEEPEST_YAML, LARGEST_YAML, MOST_VALUES

MODEL = "MODEL.UNIPERCEIVER_V2"


def bomb(levels: int = 9) -> str:
    """Lists of nine aliases each of the list before: 9^levels values in a few lines."""
    rows = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows)


def merge_bomb() -> str:
    pairs = ", ".join(f"k{i}: 1" for i in range(20))
    rows = [f"a0: &a0 {{{pairs}}}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}" for i in range(1, 9)]
    return "\n".join(rows)


# From 6.0.4 on, a merge takes each key once. Then nothing is large, and the keys are refused as unknown.
YAML_COPIES_MERGES = tuple(int(part) for part in yaml.__version__.split(".")) < (6, 0, 4)
FILES = {
    "no UTF-8": (b'SEED: "\xff\xfe"', "UTF-8"),
    "its own base": (b"_BASE_: run.yaml", "leads back to"),
    "a number as base": (b"_BASE_: 3", "its _BASE_ is 3"),
    "nothing as base": (b"_BASE_: [null]", "its _BASE_ is None"),
    "empty": (b"", "no KEY: VALUE pairs"),
    "a list": (b"[1, 2]", "no KEY: VALUE pairs"),
    "deep lists": (b"SEED: " + b"[" * 5000 + b"]" * 5000, f"deeper than {DEEPEST_YAML}"),
    "deep sections": (b"SEED: " + b"{a: " * 500 + b"1" + b"}" * 500, f"deeper than {DEEPEST_YAML}"),
    "a list in itself": (b"SEED: &a [*a]", "deeper"),
    "aliases": (bomb().encode(), f"more than {MOST_VALUES} values"),
    "deep aliases": (bomb(60).encode(), f"more than {MOST_VALUES} values"),
    "merges": (merge_bomb().encode(), f"more than {MOST_VALUES} values" if YAML_COPIES_MERGES else "a0"),
    "a section twice": (b"SOLVER: {BASE_LR: 0.1}\nSOLVER: {MAX_ITER: 5}", "'SOLVER' is in line 1 and again in line 2"),
    "a key twice, deep": (b"SOLVER:\n  STEPS: [{a: 1, 'a': 2}]", "'a' is in line 2 and again in line 2"),
    "large": (b"SEED: 1 #" + b"x" * LARGEST_YAML, f"more than {LARGEST_YAML} characters"),
    "no such day": (b"SEED: 2001-99-99", "month"),
    "endless digits": (b"SEED: " + b"9" * 5000, "digits"),
    "a list as key": (b"? [1, 2]\n: 3", "unhashable"),
}


@pytest.mark.parametrize(("content", "reason"), FILES.values(), ids=FILES.keys())
def test_a_damaged_file_is_named(tmp_path, content, reason):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_merges_are_added_up_before_they_are_all_made(tmp_path, monkeypatch):
    """Each of them is small. All of them, from half a megabyte of text, took 2 GB."""
    path = tmp_path / "run.yaml"
    pairs = ", ".join(f"k{i}: 1" for i in range(300))
    path.write_text("\n".join([f"a: &a {{{pairs}}}", *(f"b{i}: {{<<: *a}}" for i in range(200))]))
    monkeypatch.setattr(documents, "require_bounded", lambda *_: pytest.fail("they were all made"))
    with pytest.raises(UserError, match=rf"run\.yaml .* more than {MOST_VALUES} values"):
        read_yaml(str(path))


def test_a_key_that_a_merge_brings_may_be_given_again(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, <<: {z: 4}, y: 5}")
    assert read_yaml(str(path)) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 5, "z": 4}}


def test_bases_of_bases_are_read_once_each_and_are_bounded(tmp_path, monkeypatch):
    """Thirty files that each name the one before twice would be read a billion times."""
    read = []
    monkeypatch.setattr(load, "read_yaml", lambda path, what: read.append(path) or read_yaml(path, what))
    for number in range(1, 31):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: [{number - 1}.yaml, {number - 1}.yaml]\nSEED: {number}")
    (tmp_path / "0.yaml").write_text(f"_BASE_: {TINY_CONFIG}\nSOLVER: {{WARMUP_ITERS: 3}}")
    cfg = load_config(str(tmp_path / "30.yaml"))
    assert (cfg.SEED, cfg.SOLVER.WARMUP_ITERS) == (30, 3)
    assert len(read) == len(set(read))
    (tmp_path / "many.yaml").write_text(f"_BASE_: [{', '.join(['0.yaml'] * MOST_BASES)}]")
    with pytest.raises(UserError, match=rf"many\.yaml cannot be read .* more than {MOST_BASES} files"):
        load_config(str(tmp_path / "many.yaml"))


ADDRESSES = {
    "http://127.0.0.1:1/x.yaml": "refused",
    "http://a b/x.yaml": "control characters",
    "http://[::1": "Invalid",
    "s3://bucket/x.yaml": "No such file",
    "http://127.0.0.1:1/../../../../../../x.yaml": "has '..' in it",
    "http://127.0.0.1:1/.\t./x.yaml": "has '..' in it",
}


@pytest.mark.parametrize(("address", "reason"), ADDRESSES.items())
def test_an_address_that_cannot_be_fetched_is_named(tmp_path, monkeypatch, address, reason):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "copies"))
    with pytest.raises(UserError) as caught:
        load_config(address)
    assert address in str(caught.value) and reason in str(caught.value)
    path = tmp_path / "run.yaml"
    path.write_text(f"_BASE_: {json.dumps(address)}")
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path} cannot be read as a configuration: its _BASE_ {address}: ")
    assert reason in str(caught.value)


VALUES = {
    "SEED": (None, "2001-01-01", "!!set {a, b}", "0x" + "f" * 300, "[1]"),
    "SOLVER.BASE_LR": (None, ".nan", ".inf", "1" + "0" * 400, "1e999"),
    "SOLVER.BETAS": ("[0.9]", "[0.9, 1.0]", "[a, b]", "[[1], 2]", "{}"),
    "SOLVER.STEPS": ("[a]", "[null]", "[5, 1]", "[5, 5]", "[-3, 5]"),
    "SOLVER.WARMUP_METHOD": ("x",),
    "SOLVER.WARMUP_FACTOR": ("-5",),
    "SOLVER.GAMMA": ("-5", "1e300"),
    "SOLVER.EPS": ("-1",),
    "VIS_PERIOD": ("-3",),
    "OUTPUT_DIR": ('""', '"a\\0b"', '"\\ud800"'),
    "DATALOADER.NUM_WORKERS": ("-1", str(MOST_WORKERS + 1)),
    "DATALOADER.MAX_CORRUPT_SHARE": (".nan", "1.5"),
    "DATASETS.TEST": ("[[1]]", "[{a: 1}]", "[3]", "{}"),
    "DATASETS.CUSTOM.a.FORMAT": ("[1]", "{}"),
    "TASKS.NAMES": ("[1]", "[[1]]", "{}"),
    "TASKS.scenes.EVALUATES": ("[[2]]",),
    "TASKS.digits.IMAGE_SIZE": ("10000000",),
    "TASKS.digits.IMS_PER_BATCH": ("1000000000",),
    "TASKS.digits.SAMPLING_RATIO": ("1e308",),
    "TASKS.digits.LABEL_SMOOTHING": ("1.5", "-0.1", ".nan"),
    "MODEL.DEVICE": ("meta", "nonsense", '""'),
    "MODEL.PIXEL_MEAN": ("[1, 2]", "[a, b, c]"),
    "INPUT.FORMAT": ("XYZ",),
    "INPUT.MIN_SIZE_TRAIN": ("[]", "[0]"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("x", "range"),
    "INPUT.RANDOM_FLIP": ("x",),
    "INPUT.CROP": (
        *("{ENABLED: true, TYPE: x}", "{ENABLED: true, SIZE: [5]}", "{ENABLED: true, SIZE: [-1, 0.5]}"),
        *("{ENABLED: true, TYPE: absolute, SIZE: [0.0, 0.0]}", "{ENABLED: true, TYPE: absolute_range, SIZE: [9, 5]}"),
    ),
    f"{MODEL}.EMBED_DIM": ("0", "-4", str(LARGEST_SIZE + 1), "66"),
    f"{MODEL}.DECODER.HEADS": ("0", "7"),
    f"{MODEL}.REGION.HEADS": ("0", "7"),
    f"{MODEL}.REGION.NUM_QUERIES": ("0",),
    f"{MODEL}.ACTIVATION_CHECKPOINTING": ("[[]]",),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_bad_value_is_named_by_its_key_before_anything_is_built(tmp_path, key, value):
    path = tmp_path / "run.yaml"
    *parents, last = key.split(".")
    kinds = {"TASKS.scenes": "detection", "TASKS.digits": "classification"}
    kind = f"    KIND: {kinds['.'.join(parents)]}\n" if ".".join(parents) in kinds else ""
    rows = [f"_BASE_: {TINY_CONFIG}"] + [f"{'  ' * depth}{name}:" for depth, name in enumerate(parents)]
    path.write_text("\n".join(rows) + f"\n{kind}{'  ' * len(parents)}{last}: {'null' if value is None else value}\n")
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert key in message or str(path) in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("kind", "size"), [("relative", [1, 0.5]), ("relative_range", [0.1, 1]), ("absolute", [512, 1024])]
)
def test_crops_that_can_be_made_are_kept(kind, size):
    node = load_config(
        str(TINY_CONFIG), ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", str(size)]
    ).INPUT.CROP
    assert node.ENABLED and kind == node.TYPE and list(node.SIZE) == size


def test_a_range_of_sizes_is_kept():
    node = load_config(
        str(TINY_CONFIG), ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "[80, 96]"]
    ).INPUT
    assert node.MIN_SIZE_TRAIN_SAMPLING == "range" and list(node.MIN_SIZE_TRAIN) == [80, 96]


@pytest.mark.parametrize("value", ["(1," * 300 + ")" * 300, "1" + "+1" * 3000, "()" * 3000, "9" * 5000])
def test_a_value_on_the_command_line_that_python_cannot_parse_is_a_text(value):
    with pytest.raises(UserError, match="'SEED' on the command line expects int"):
        load_config(str(TINY_CONFIG), ["SEED", value])


def test_every_range_has_its_setting_and_the_default_is_in_it():
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    for key, (least, most) in RANGES.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        assert all(least <= number <= most for number in (value if isinstance(value, list | tuple) else [value]))
