"""Configurations that are no configurations, or whose values cannot be used: one message, with the file or the key."""

import pytest
import yaml
from detectron2.config import get_cfg

from uniperceiver_v2.config import add_uniperceiver_v2_config, load_config
from uniperceiver_v2.config.ranges import LARGEST_SIZE, MOST_WORKERS, RANGES
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import TINY_CONFIG
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


VALUES = {
    "SEED": (None, "2001-01-01", "!!set {a, b}", "0x" + "f" * 300, "[1]"),
    "SOLVER.BASE_LR": (None, ".nan", ".inf", "1" + "0" * 400, "1e999"),
    "SOLVER.BETAS": ("[0.9]", "[0.9, 1.0]", "[a, b]", "[[1], 2]", "{}"),
    "SOLVER.STEPS": ("[a]", "[null]"),
    "OUTPUT_DIR": ('"a\\0b"', '"\\ud800"'),
    "DATALOADER.NUM_WORKERS": ("-1", str(MOST_WORKERS + 1)),
    "DATALOADER.MAX_CORRUPT_SHARE": (".nan", "1.5"),
    "DATASETS.TEST": ("[[1]]", "[{a: 1}]", "[3]", "{}"),
    "DATASETS.CUSTOM.a.FORMAT": ("[1]", "{}"),
    "TASKS.NAMES": ("[1]", "[[1]]", "{}"),
    "TASKS.scenes.EVALUATES": ("[[2]]",),
    "TASKS.digits.LABEL_SMOOTHING": ("1.5", "-0.1", ".nan"),
    "MODEL.DEVICE": ("nonsense", '""'),
    "MODEL.PIXEL_MEAN": ("[1, 2]", "[a, b, c]"),
    "INPUT.FORMAT": ("XYZ",),
    "INPUT.MIN_SIZE_TRAIN": ("[]", "[0]"),
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
