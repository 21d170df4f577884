"""Words of captions, with and without Java."""

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from uniperceiver_v2.evaluation.caption_tokens import has_java, tokenize, tokenize_plainly

needs_java = pytest.mark.skipif(not has_java(), reason="PTBTokenizer is a Java program, and there is no Java")

SENTENCES = (
    "A man's dog doesn't like the black-and-white cat; it's 3.5 metres away!",
    "Two zebras, one giraffe (and a bird) - outside...",
    "The U.S. flag: red, white & blue -- at 10:30?",
    "They're \"here\" and we've paid $1,000 for 50% of [it]",
    "Straße café naïve \u201cquoted\u201d it\u2019s",
    "either/or",
    "from left to right: seven, an 8 and two twos",
    "",
    ".",
)


@pytest.fixture
def without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_plain_words():
    assert [tokenize_plainly(text) for text in SENTENCES] == [
        "a man 's dog does n't like the black-and-white cat it 's 3.5 metres away",
        "two zebras one giraffe -lrb- and a bird -rrb- outside",
        "the u.s. flag red white & blue at 10:30",
        "they 're here and we 've paid $ 1,000 for 50 % of -lsb- it -rsb-",
        "straße café naïve quoted it 's",
        "either/or",
        "from left to right seven an 8 and two twos",
        "",
        "",
    ]


def test_without_java_words_are_the_plain_ones(without_java):
    assert tokenize(SENTENCES) == ([tokenize_plainly(text) for text in SENTENCES], False)


def test_a_java_that_fails_is_none(monkeypatch, tmp_path, caplog):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no runtime installed >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert tokenize(["A dog."]) == (["a dog"], False)
    assert "no runtime installed" in caplog.text


@needs_java
def test_java_gives_the_words_of_pycocoevalcap_in_any_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # with which the original reads
    direct = PTBTokenizer().tokenize({0: [{"caption": text} for text in SENTENCES]})[0]
    monkeypatch.setenv("LC_ALL", "C")
    assert tokenize(SENTENCES) == (direct, True)
    assert [tokenize_plainly(text) for text in SENTENCES] == direct


@needs_java
def test_java_gives_every_caption_its_line():
    odd = ["two\nlines\u2028or\x0bmore", "lone \ud800 surrogate", "", ""]
    assert tokenize(odd) == (["two lines or more", "lone surrogate", "", ""], True)
    assert tokenize(["", ""]) == (["", ""], True)
