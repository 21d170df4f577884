"""Caption metrics compared with pycocoevalcap run directly, and the metrics that remain without Java."""

import gzip
import math
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import caption_metrics as module
from uniperceiver_v2.evaluation import meteor, spice
from uniperceiver_v2.evaluation.caption_metrics import METRICS, caption_metrics
from uniperceiver_v2.evaluation.caption_tokens import has_java, tokenize_plainly

needs_java = pytest.mark.skipif(not has_java(), reason="METEOR is a Java program, and there is no Java")

THINGS = (
    "dog",
    "cat",
    "red bus",
    "black-and-white cow",
    "man's hat",
    "5 o'clock sign",
    "café",
    "女 statue",
    "t.v. set",
)
PLACES = ("next to", "in front of", "on top of", "close to", "above", "near", "against")
STARTS = ("a picture of", "an image of", "the image of", "there is", "it's", "a number of", "several", "I can't see")
# References and a candidate that no tokenizer, line protocol or encoding may stumble over.
ODD = (
    (["two dogs play", "dogs"], ""),
    (["a ||| b", "pipes ||| and more"], "a ||| b ||| c"),
    (["first line\nsecond line", "one line"], "first line\nsecond  line"),
    (["größe ﬁne → naïve “quoted” text…", "emoji 🐕 here"], "naïve größe 🐕"),
    (["(brackets) [in] {text} 3.5 1,000 -- a/b; x: y!", "... ?"], "(brackets) 3.5 of 1,000 ..."),
    (["a a a a", "a", "a"], "a a a a a a a"),
    (["my mother-in-law_maker", "no"], "my mother in legislation or legislation"),  # "law" has a paraphrase
)


def captions(images=40, seed=0):
    """By image id: one to four references of each image, and a candidate."""
    rng = random.Random(seed)

    def sentence():
        start, thing, place, other = (rng.choice(words) for words in (STARTS, THINGS, PLACES, THINGS))
        return f"{start} a {thing} {place} a {other}{rng.choice(('', '.', '!', ', outside'))}"

    references = {image: [sentence() for _ in range(rng.randint(1, 4))] for image in range(images)}
    candidates = {image: sentence() for image in range(images)}
    for image, (given, candidate) in enumerate(ODD):
        references[image], candidates[image] = given, candidate
    return references, candidates


def direct_metrics(references, candidates, scorers):
    """Metrics of tokenised captions by pycocoevalcap's classes, called as in its own evaluation script."""
    bleu, *others = [scorer.compute_score(references, candidates)[0] for scorer in scorers]
    return [100 * value for value in (*bleu, *others)]


@pytest.fixture
def without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@needs_java
def test_equals_pycocoevalcap_run_directly(monkeypatch):
    """Also for unusual captions, for several rows at once, and with METEOR's paraphrases reduced to those that can
    match."""
    references, candidates = captions()
    _, others = captions(seed=1)
    rows = {"ours": candidates, "others": others}
    monkeypatch.setenv("LC_ALL", "C")
    metrics = caption_metrics(references, rows)
    assert list(metrics) == ["ours", "others"]

    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # with which the original reads non-ASCII text

    given = {("references", image): texts for image, texts in references.items()}
    given |= {(name, image): [text] for name, row in rows.items() for image, text in row.items()}
    tokenized = PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in given.items()})
    parts = {name: {image: tokenized[name, image] for image in references} for name in ("references", *rows)}
    scorers = [Bleu(4), Meteor(), Rouge(), Cider()]
    for name in rows:
        expected = direct_metrics(parts["references"], parts[name], scorers)
        assert [metrics[name][metric] for metric in METRICS[:-1]] == pytest.approx(expected, rel=1e-12), name
        assert all(1 < value < 99 for value in expected[:6])
        assert math.isnan(metrics[name]["SPICE"])


def test_without_java_the_rest_is_computed_from_plain_words(without_java, caplog):
    references, candidates = captions()
    metrics = caption_metrics(references, {"caption": candidates})["caption"]
    assert list(metrics) == list(METRICS)
    assert math.isnan(metrics["METEOR"]) and math.isnan(metrics["SPICE"])
    assert "no Java" in caplog.text

    references = {image: [tokenize_plainly(text) for text in texts] for image, texts in references.items()}
    candidates = {image: [tokenize_plainly(text)] for image, text in candidates.items()}
    expected = direct_metrics(references, candidates, [Bleu(4), Rouge(), Cider()])
    found = [metrics[metric] for metric in METRICS if metric not in ("METEOR", "SPICE")]
    assert found == pytest.approx(expected, rel=1e-12)


def test_perfect_and_empty_captions(without_java):
    references = {image: [f"{number} dogs and {number} cats"] for image, number in enumerate(("two", "three", "four"))}
    rows = {"same": {i: given[0] for i, given in references.items()}, "empty": dict.fromkeys(references, "")}
    metrics = caption_metrics(references, rows)
    assert metrics["same"]["Bleu_4"] == pytest.approx(100) and metrics["same"]["ROUGE_L"] == pytest.approx(100)
    assert metrics["same"]["CIDEr"] == pytest.approx(1000)
    for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert metrics["empty"][name] == pytest.approx(0, abs=1e-6), name


def test_references_without_words_give_nothing(without_java):
    metrics = caption_metrics({1: ["."], 2: ["...", ""]}, {"caption": {1: "a dog", 2: ""}})
    assert all(math.isnan(value) for value in metrics["caption"].values())


@pytest.fixture
def small_meteor(monkeypatch, tmp_path):
    """METEOR with one paraphrase, and the processes that it started."""
    table = tmp_path / "paraphrases.gz"
    with gzip.open(table, "wb") as file:
        file.write(b"0.5\nnext to\nclose to\n0.5\nnext to\nfar from\n0.5\nat\nnext to\n")
    monkeypatch.setattr(meteor, "_PARAPHRASES", str(table))
    processes = []

    def start(*args, **kwargs):
        processes.append(subprocess.Popen(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(meteor, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    return processes


def ended(process):
    return process.returncode is not None and process.stdin.closed and process.stdout.closed


@needs_java
def test_one_meteor_process_for_all_rows_and_none_is_left(small_meteor):
    references = {1: ["a dog close to a cat"], 2: ["nothing here", ""]}
    rows = {"paraphrase": {1: ["a dog next to a cat"], 2: [""]}, "none": {1: ["a dog over a cat"], 2: [""]}}
    scores = meteor.meteor_scores(references, rows)
    assert 0 < scores["none"] < scores["paraphrase"] < 1
    assert len(small_meteor) == 1 and ended(small_meteor[0])


@needs_java
@pytest.mark.parametrize("cause", ["no program", "killed"])
def test_a_meteor_that_dies_is_missing_and_nothing_waits_for_it(small_meteor, monkeypatch, caplog, cause):
    if cause == "no program":
        monkeypatch.setattr(meteor.meteor, "METEOR_JAR", "missing.jar")
    else:
        monkeypatch.setattr(meteor._Meteor, "_stat", lambda self, *_: self.meteor_p.kill())
    assert meteor.meteor_scores({1: ["a dog"]}, {"caption": {1: ["a dog"]}}) == {}
    assert "METEOR failed" in caplog.text
    assert ended(small_meteor[0])


def test_paraphrases_of_the_captions_alone_are_kept(small_meteor, tmp_path):
    meteor._keep_paraphrases({b"next", b"to", b"at", b"far"}, str(tmp_path / "kept.gz"))
    assert gzip.decompress((tmp_path / "kept.gz").read_bytes()) == b"0.5\nat\nnext to\n"


def test_a_word_may_be_cut_at_any_sign():
    assert meteor._words(["a man's", "x_7", "naïf", "女性"]) == {
        word.encode()
        for words in ("a man's man ' s man' 's", "x_7 x _ 7 x_ _7", "naïf na ï f naï ïf", "女性 女 性")
        for word in words.split()
    }


# Stands for SPICE's program: it writes the share of a caption's words that its first reference has, or fails.
FAKE_JAVA = """#!{python}
import json, sys
assert sys.argv[sys.argv.index("-cp") + 2] == "edu.anu.spice.SpiceScorer" and "-subset" in sys.argv
jars = sys.argv[sys.argv.index("-cp") + 1].split(":")
assert jars[0].endswith("spice/spice-1.0.jar") and jars[1].endswith("spice/lib/*") and jars[2] == "models/*", jars
given = json.load(open(sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1]))
if any(item["test"] == "fails" for item in given):
    sys.exit("out of memory")
scores = []
for item in given:
    words = item["test"].split()
    share = sum(word in item["refs"][0].split() for word in words) / len(words) if words else "NaN"
    scores.append({{"image_id": item["image_id"], "scores": {{"All": {{"f": share}}}}}})
json.dump(scores[::-1], open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    program = tmp_path / "bin/java"
    program.parent.mkdir()
    program.write_text(FAKE_JAVA.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_spice_of_all_rows_from_one_process(fake_java):
    references = {7: ["a dog", "two dogs"], 9: ["one cat"]}
    rows = {"x": {7: ["a dog"], 9: ["one dog"]}, "y": {7: ["dogs"], 9: ["no cat here now"]}, "z": {7: [""], 9: ["a"]}}
    scores = spice.spice_scores(references, rows, "models")
    assert scores["x"] == 0.75 and scores["y"] == 0.125 and math.isnan(scores["z"])


def test_a_failure_of_spice_is_logged(fake_java, caplog):
    assert spice.spice_scores({1: ["a"]}, {"x": {1: ["fails"]}}, "models") == {}
    assert "SPICE failed: out of memory" in caplog.text


def test_spice_is_computed_only_where_its_models_are_given(monkeypatch):
    monkeypatch.setattr(module, "tokenize", lambda texts: (texts, True))
    monkeypatch.setattr(module, "meteor_scores", lambda references, rows: {})
    asked = []
    monkeypatch.setattr(module, "spice_scores", lambda *given: asked.append(given[2]) or {"caption": 0.25})
    arguments = {1: ["a dog"]}, {"caption": {1: "a dog"}}
    assert math.isnan(caption_metrics(*arguments)["caption"]["SPICE"]) and not asked
    assert caption_metrics(*arguments, "models")["caption"]["SPICE"] == 25 and asked == ["models"]


def test_a_missing_model_of_spice_is_named_before_any_work(tiny_config, tmp_path):
    tiny_config.TASKS.NAMES, tiny_config.TEST.SPICE_MODELS = [], str(tmp_path)
    for name in spice.MODELS:
        with pytest.raises(UserError, match=rf"TEST\.SPICE_MODELS: no file {tmp_path}/{name}; .*2015-12-09\.zip"):
            check_config(tiny_config, training=False)
        (tmp_path / name).touch()
    assert not spice.missing_models(str(tmp_path))
