import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.data.mappers.captions import CaptionMapper, PairMapper, ReferenceMapper, RetrievalMapper
from uniperceiver_v2.data.mappers.images import DetectionMapper
from uniperceiver_v2.data.mappers.texts import EachTokenOnceMapper, TextMapper, each_token_once
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.errors import UnreadableImage
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer

# Read once, as hypothesis does not allow fixtures that are made again for each test.
TOKENIZER = load_tokenizer(REPOSITORY / "configs/digit_scenes/text_encoder")
SPECIAL = set(TOKENIZER.all_special_ids)


def drawn(mapper, record, seed):
    with numpy_draws_from(np.random.default_rng(seed)):
        return mapper(record)


@pytest.fixture
def record(tiny) -> dict:
    return load_dataset("tiny_digit_scenes_captions_train")[0]


def test_a_caption_in_training(scenes_config, record, tokenizer):
    before = copy.deepcopy(record)
    sample = drawn(PairMapper(scenes_config, "pairs", tokenizer), record, 0)
    assert record == before
    assert sample.keys() == {
        *("task", "image", "height", "width", "file_name", "image_id", "captions", "caption_token_ids"),
    }
    assert (sample["task"], sample["image_id"], sample["file_name"]) == ("pairs", 1, record["file_name"])
    assert sample["image"].dtype == torch.uint8 and sample["captions"][0] in record["captions"]
    (caption,), (token_ids,) = sample["captions"], sample["caption_token_ids"]
    assert torch.equal(token_ids, encode(tokenizer, caption))
    assert tokenizer.decode(token_ids, skip_special_tokens=True).strip() == caption


def test_several_captions_in_training(scenes_config, record, tokenizer):
    record["captions"] = ["a one", "a two", "a three"]
    for count in (1, 2, 3, 8):
        sample = drawn(CaptionMapper(scenes_config, "captions", tokenizer, count), record, 0)
        assert sample.keys() == {
            *("task", "image", "height", "width", "file_name", "image_id", "captions", "caption_token_ids"),
        }
        assert len(set(sample["captions"])) == min(count, 3) and set(sample["captions"]) <= set(record["captions"])
        for caption, token_ids in zip(sample["captions"], sample["caption_token_ids"], strict=True):
            assert torch.equal(token_ids, encode(tokenizer, caption))


def test_several_captions_of_a_pair_are_as_many_as_asked_for(scenes_config, record, tokenizer):
    record["captions"] = ["a one", "a two", "a three"]
    for count in (1, 2, 3, 8):
        captions = drawn(PairMapper(scenes_config, "pairs", tokenizer, count), record, 0)["captions"]
        assert len(captions) == count and len(set(captions)) == min(count, 3)


def test_every_caption_of_an_image_is_drawn_as_often(scenes_config, record, tokenizer):
    one, count = PairMapper(scenes_config, "pairs", tokenizer), 300
    several = CaptionMapper(scenes_config, "captions", tokenizer, 1)
    for counts in (
        Counter(drawn(one, record, seed)["captions"][0] for seed in range(count)),
        Counter(drawn(several, record, seed)["captions"][0] for seed in range(count)),
    ):
        assert set(counts) == set(record["captions"])
        assert max(abs(n - count / 5) for n in counts.values()) < 4 * np.sqrt(count * 0.2 * 0.8)


def test_captioned_images_are_resized_as_for_detection_but_never_mirrored_or_cropped(scenes_config, tiny, tokenizer):
    cfg = scenes_config
    captions = load_dataset("tiny_digit_scenes_captions_train")
    plain = {}
    for size in cfg.INPUT.MIN_SIZE_TRAIN:
        # Detection's evaluation mirrors and crops nothing.
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size, cfg.INPUT.MAX_SIZE_TRAIN
        plain[size] = DetectionMapper(cfg, "detection", ("a",), is_train=False)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "horizontal", True
    mapper = PairMapper(cfg, "pairs", tokenizer)
    sizes = Counter()
    for seed in range(30):
        image = drawn(mapper, captions[seed], seed)["image"]
        sizes[image.shape[1]] += 1
        assert torch.equal(image, plain[image.shape[1]](captions[seed])["image"])
    assert set(sizes) == set(cfg.INPUT.MIN_SIZE_TRAIN)


def test_captioning_is_compared_with_all_references(scenes_config, record):
    record["captions"].append(record["captions"][0])  # the same sentence twice is two references
    scenes_config.INPUT.MIN_SIZE_TEST = 120
    sample = ReferenceMapper(scenes_config, "captioning")(record)
    assert sample.keys() == {"task", "image", "height", "width", "file_name", "image_id", "captions"}
    assert sample["task"] == "captioning" and sample["image"].shape == (3, 120, 120)
    assert sample["captions"] == record["captions"] and len(sample["captions"]) == 6


def test_retrieval_takes_the_first_five_captions(scenes_config, record, tokenizer):
    record["captions"] += ["a sixth", "a seventh"]
    sample = RetrievalMapper(scenes_config, "retrieval", tokenizer)(record)
    assert sample["task"] == "retrieval" and sample["image"].shape == (3, 96, 96)
    assert sample["captions"] == record["captions"][:5]
    for caption, token_ids in zip(sample["captions"], sample["caption_token_ids"], strict=True):
        assert torch.equal(token_ids, encode(tokenizer, caption))
    record["captions"] = ["one alone"]
    assert len(RetrievalMapper(scenes_config, "retrieval", tokenizer)(record)["caption_token_ids"]) == 1


def test_an_unreadable_image_of_a_caption_is_told(scenes_config, record, tokenizer, tmp_path):
    record["file_name"] = str(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImage, match=r"none\.jpg"):
        CaptionMapper(scenes_config, "captions", tokenizer, 1)(record)


def within(observed: int, trials: int, share: float) -> bool:
    """Whether the number of successes in a number of trials fits a probability, up to four standard errors."""
    return abs(observed - trials * share) < 4 * np.sqrt(trials * share * (1 - share))


def test_masking_has_robertas_statistics(tokenizer):
    mapper = TextMapper("texts", tokenizer, 0.15)
    text = "two purple fours and five white fours are seven digits and nothing else is to be seen here by anyone"
    ids = encode(tokenizer, text)
    positions, words = len(ids) - 2, len(tokenizer) - len(SPECIAL)
    repeats = 1500
    masked = kept = 0
    replaced, at = [], np.zeros(len(ids), int)
    for seed in range(repeats):
        sample = drawn(mapper, {"text_id": 4, "text": text}, seed)
        chosen = sample["labels"] != -100
        assert torch.equal(sample["labels"][chosen], ids[chosen])
        assert torch.equal(sample["token_ids"][~chosen], ids[~chosen])
        assert int(0.15 * positions) <= chosen.sum() <= int(0.15 * positions) + 1
        shown = sample["token_ids"][chosen]
        at += chosen.numpy()
        masked += int((shown == tokenizer.mask_token_id).sum())
        kept += int((shown == ids[chosen]).sum())
        replaced += shown[(shown != tokenizer.mask_token_id) & (shown != ids[chosen])].tolist()
    total = int(at.sum())
    # The number in a text is one of two consecutive ones, so that its standard deviation is at most half a token.
    assert abs(total / repeats - 0.15 * positions) < 4 * 0.5 / np.sqrt(repeats)
    assert within(masked, total, 0.8)
    assert within(kept, total, 0.1 + 0.1 / words)  # a random token may be the same
    assert within(len(replaced), total, 0.1 - 0.1 / words)
    # Any position, any token of the vocabulary, never a special one.
    assert at[0] == at[-1] == 0 and all(within(n, repeats, total / repeats / positions) for n in at[1:-1])
    assert not set(replaced) & SPECIAL
    expected_distinct = words * (1 - (1 - 1 / words) ** len(replaced))
    assert abs(len(set(replaced)) - expected_distinct) < 0.1 * expected_distinct


@pytest.mark.parametrize("share", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("text", ["x", "one", "a red seven", "x" * 100, "赤い七"])
def test_texts_of_any_length_have_something_to_predict(tokenizer, text, share):
    ids = encode(tokenizer, text)
    for seed in range(20):
        sample = drawn(TextMapper("texts", tokenizer, share), {"text_id": 0, "text": text}, seed)
        assert sample.keys() == {"task", "text_id", "token_ids", "labels"} and sample["text_id"] == 0
        assert sample["token_ids"].shape == sample["labels"].shape == ids.shape
        assert sample["token_ids"].dtype == sample["labels"].dtype == torch.int64
        count = int((sample["labels"] != -100).sum())
        assert max(1, int(share * (len(ids) - 2))) <= count <= max(1, np.ceil(share * (len(ids) - 2)))
        assert sample["labels"][0] == sample["labels"][-1] == -100


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=60)


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_evaluation_masks_every_token_exactly_once(texts):
    mapper = EachTokenOnceMapper("language_modelling", TOKENIZER)
    records = each_token_once([{"text_id": i, "text": text} for i, text in enumerate(texts)], TOKENIZER)
    samples = [mapper(record) for record in records]
    for text_id, text in enumerate(texts):
        ids = encode(TOKENIZER, text)
        of_text = [sample for sample in samples if sample["text_id"] == text_id]
        assert len(of_text) == min(7, len(ids) - 2)
        times = torch.zeros_like(ids)
        for sample in of_text:
            asked = sample["labels"] != -100
            assert asked.any() and torch.equal(sample["labels"][asked], ids[asked])
            assert (sample["token_ids"][asked] == TOKENIZER.mask_token_id).all()
            assert torch.equal(sample["token_ids"][~asked], ids[~asked])
            assert abs(asked.sum() - (len(ids) - 2) / 7) < 1 or len(ids) < 9
            times += asked
        assert times.tolist() == [0] + [1] * (len(ids) - 2) + [0]


def test_what_is_masked_together_is_scattered_and_follows_from_the_text_alone(tokenizer):
    text = "there is a green nine, a blue nine and two purple sevens"

    def masked(text_id):
        records = each_token_once([{"text_id": text_id, "text": text}], tokenizer)
        mapper = EachTokenOnceMapper("language_modelling", tokenizer)
        return [np.flatnonzero(mapper(record)["labels"] != -100).tolist() for record in records]

    assert masked(0) == masked(7)
    assert masked(0) != [list(range(1 + j, len(encode(tokenizer, text)) - 1, 7)) for j in range(7)]
