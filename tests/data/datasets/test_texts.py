"""Captions and corpora of users: which texts are used, which are left out, and which errors name the file."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.data import load_dataset, register_captions, register_text_lines
from uniperceiver_v2.data.datasets.formats import load_karpathy_json
from uniperceiver_v2.data.datasets.texts import build_tokenizer, encode, load_captions, load_texts
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer

# Read once, as hypothesis does not allow fixtures that are made again for each test.
TOKENIZER = load_tokenizer(REPOSITORY / "configs/digit_scenes/text_encoder")
FIRST, LAST = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id

FOREIGN = ["eine rote Sieben über zwei blauen Dreien", "赤い七と青い三", "٧ حمراء", "seven 7️⃣ \U0001f600", "e\u0301 é"]


def message_of(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def own(tmp_path, catalogs):
    """{image id: captions} -> registers them in COCO's format as "own". The annotations' ids begin with 100."""

    def register(captions: dict[int, list], change=lambda content: None) -> str:
        pairs = [(image_id, caption) for image_id, texts in captions.items() for caption in texts]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in captions],
            "annotations": [
                {"id": 100 + n, "image_id": image_id, "caption": caption} for n, (image_id, caption) in enumerate(pairs)
            ],
        }
        change(content)
        path = tmp_path / "own.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        register_captions("own", str(path), "images")
        return str(path)

    return register


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_framed_cut_and_kept(text):
    ids = encode(TOKENIZER, text)
    assert ids.dtype == torch.int64 and ids[0] == FIRST and ids[-1] == LAST
    assert 2 <= len(ids) <= 64
    assert not set(ids[1:-1].tolist()) & set(TOKENIZER.all_special_ids)
    decoded = TOKENIZER.decode(ids[1:-1])
    whole = encode(TOKENIZER, text, max_length=1000)
    if len(whole) <= 64:
        assert torch.equal(ids, whole) and decoded.removeprefix(" ") == text.removeprefix(" ")
    else:
        assert len(ids) == 64 and torch.equal(ids[:-1], whole[:63])


@pytest.mark.parametrize("text", FOREIGN)
def test_non_ascii_text_comes_back(text):
    assert TOKENIZER.decode(encode(TOKENIZER, text), skip_special_tokens=True).strip() == text


def test_what_reads_like_a_special_token_is_text():
    ids = encode(TOKENIZER, "a <s>red</s> <mask> seven <pad>")
    assert sorted({FIRST, LAST, TOKENIZER.pad_token_id, TOKENIZER.mask_token_id} & set(ids.tolist())) == [FIRST, LAST]
    assert TOKENIZER.decode(ids[1:-1]).strip() == "a <s>red</s> <mask> seven <pad>"


def test_the_configured_tokenizer_or_the_key_that_names_none(config):
    cfg = config()
    assert build_tokenizer(cfg).get_vocab() == TOKENIZER.get_vocab()
    cfg.MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH = "nowhere"
    assert "MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH" in message_of(build_tokenizer, cfg)


def test_captions_of_the_default_data_are_taken_as_they_are(tiny, tokenizer, logged):
    for name in ("tiny_digit_scenes_captions_train", "tiny_digit_scenes_retrieval_test"):
        assert load_captions(name, tokenizer) == load_dataset(name)
    assert not [message for message in logged() if message.startswith("dataset")]


def test_empty_captions_and_images_without_one_are_left_out_and_counted(own, tokenizer, logged):
    own({1: ["a red seven", " \n", ""], 2: [], 3: ["\t", "\u00a0"], 4: ["  a  blue\nthree. "]})
    records = load_captions("own", tokenizer)
    assert {r["image_id"]: r["captions"] for r in records} == {1: ["a red seven"], 4: ["a blue three."]}
    assert records[0]["file_name"] == "images/1.jpg" and records[0]["height"] == 40
    assert logged()[-2:] == [
        "dataset 'own': 4 captions are empty and left out",
        "dataset 'own': 2 of 4 images have no caption and are left out",
    ]


def test_images_without_any_caption_are_refused(own, tokenizer):
    path = own({1: [""], 2: []})
    message = message_of(load_captions, "own", tokenizer)
    assert (
        message
        == f"{path} of dataset 'own': none of its 2 images has a caption; datasets/README.md shows the expected files"
    )


def test_captions_longer_than_the_encoder_are_counted_in_one_line(own, tokenizer, logged):
    long, fits = "x" * 62, "x" * 61  # a token a letter, the blank before the first, <s> and </s>
    assert len(encode(tokenizer, fits)) == 64 == len(encode(tokenizer, long))
    own({1: [long, fits], 2: ["one two " * 60], 3: ["seven"]})
    records = load_captions("own", tokenizer)
    assert records[0]["captions"] == [long, fits]
    assert [m for m in logged() if "cut" in m] == [
        "dataset 'own': 2 captions are longer than the text encoder's 64 tokens and cut"
    ]


def test_duplicated_captions_are_kept(own, tokenizer):
    own({1: ["a seven", "a seven", "a nine"], 2: ["a seven"]})
    assert [r["captions"] for r in load_captions("own", tokenizer)] == [["a seven", "a seven", "a nine"], ["a seven"]]


def test_non_ascii_captions_are_kept(own, tokenizer):
    own({1: FOREIGN})
    assert load_captions("own", tokenizer)[0]["captions"] == FOREIGN


def test_half_of_a_surrogate_pair_is_no_character(own, tokenizer):
    own({1: ["a \ud83d seven"]})
    assert load_captions("own", tokenizer)[0]["captions"] == ["a ? seven"]


@pytest.mark.parametrize("caption", [None, 7, ["a seven"], {"en": "a seven"}])
def test_a_caption_that_is_no_string_is_named(own, tokenizer, caption):
    path = own({1: ["a seven"], 2: ["a nine", caption]})
    message = message_of(load_captions, "own", tokenizer)
    assert path in message and "annotation 102" in message and repr(caption) in message


def test_a_caption_of_an_unlisted_image_is_named(own, tokenizer):
    path = own({1: ["a seven"]}, lambda content: content["annotations"][0].update(image_id=9))
    message = message_of(load_captions, "own", tokenizer)
    assert path in message and "annotation 100 is of image 9" in message


@pytest.mark.parametrize("captions", [None, "a seven", ["a", 3]])
def test_records_of_a_users_own_function_are_checked(catalogs, tokenizer, captions):
    DatasetCatalog.register("mine", lambda: [{"file_name": "a.jpg", "image_id": 0, "captions": captions}])
    message = message_of(load_captions, "mine", tokenizer)
    assert "'mine'" in message and "a.jpg" in message and repr(captions) in message


@pytest.fixture
def karpathy(tmp_path):
    """A file like the published Karpathy splits, with COCO's folders and ids."""
    splits = ["train", "restval", "val", "test"]
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012}.jpg",
            "cocoid": 1000 + number,
            "imgid": number,
            "split": split,
            "sentences": [{"raw": f"caption {number}.{i}", "tokens": [], "sentid": 10 * number + i} for i in range(6)],
        }
        for number, split in enumerate(splits)
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_karpathys_splits(karpathy):
    found = {split: load_karpathy_json(str(karpathy), "coco", split) for split in ("train", "val", "test")}
    assert {split: [r["image_id"] for r in records] for split, records in found.items()} == {
        "train": [1000, 1001],
        "val": [1002],
        "test": [1003],
    }
    assert found["val"][0] == {
        "file_name": "coco/val2014/COCO_val2014_000000000002.jpg",
        "image_id": 1002,
        "captions": [f"caption 2.{i}" for i in range(6)],
    }


def test_karpathys_file_without_folders_and_coco_ids(karpathy, tmp_path):
    content = json.loads(karpathy.read_text())
    for image in content["images"]:
        del image["filepath"], image["cocoid"]
    karpathy.write_text(json.dumps(content))
    records = load_karpathy_json(str(karpathy), "flickr30k/flickr30k-images", "test")
    assert (records[0]["file_name"], records[0]["image_id"]) == (
        "flickr30k/flickr30k-images/COCO_val2014_000000000003.jpg",
        3,
    )


def test_karpathys_file_with_a_sentence_that_is_no_string(karpathy, catalogs):
    karpathy.write_text(karpathy.read_text().replace('"caption 2.4"', "5"))
    register_captions("own", str(karpathy), "coco", karpathy_split="val")
    message = message_of(load_dataset, "own")
    assert str(karpathy) in message and "sentid 24 is 5" in message


def test_a_split_that_is_not_there(karpathy, catalogs):
    register_captions("own", str(karpathy), "coco", karpathy_split="test2")
    assert "dataset 'own' is empty" in message_of(load_dataset, "own")


def test_texts_are_tidied_and_what_is_cut_is_counted(tmp_path, catalogs, tokenizer, logged):
    (tmp_path / "corpus.txt").write_text(
        "  two  and\ttwo\n\n \u00a0\nvier über null\n" + "one " * 100, encoding="utf-8"
    )
    register_text_lines("own", str(tmp_path / "corpus.txt"))
    records = load_texts("own", tokenizer)
    assert [r["text"] for r in records] == ["two and two", "vier über null", " ".join(["one"] * 100)]
    assert len({r["text_id"] for r in records}) == 3
    assert [m for m in logged() if m.startswith("dataset")] == [
        "dataset 'own': 1 texts are longer than the text encoder's 64 tokens and cut"
    ]


@pytest.mark.parametrize(("records", "expected"), [
    ([{"text_id": 0, "text": ["a"]}], "['a']"),
    ([{"text": "a"}], '"text_id"'),
    ([{"text_id": 0, "text": " \n"}], "all of its 1 texts are empty"),
])  # fmt: skip
def test_a_users_own_texts_are_checked(catalogs, tokenizer, records, expected):
    DatasetCatalog.register("mine", lambda: records)
    message = message_of(load_texts, "mine", tokenizer)
    assert "'mine'" in message and expected in message


def test_a_corpus_in_another_encoding_is_named(tmp_path, catalogs, tokenizer):
    (tmp_path / "corpus.txt").write_bytes("vier über null".encode("latin-1"))
    register_text_lines("own", str(tmp_path / "corpus.txt"))
    message = message_of(load_texts, "own", tokenizer)
    assert str(tmp_path / "corpus.txt") in message and "utf-8" in message
