"""What a visitor may ask: lists of texts, and what is too much."""

import pytest

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.web.limits import Limits


def test_lists_have_commas_or_lines_between_their_texts():
    assert Limits().list_of(" cat,  a  red\tseven\n\ncat , ,dog,", "labels") == ["cat", "a red seven", "dog"]
    assert Limits().list_of(None, "labels") == Limits().list_of(" ,\n", "labels") == []


def test_too_many_and_too_long_texts_are_refused():
    limits = Limits(texts=3, text_length=5)
    assert limits.list_of("a,b,c", "labels") == ["a", "b", "c"]
    with pytest.raises(UserError, match="4 labels: this page takes 3"):
        limits.list_of("a,b,c,d", "labels")
    with pytest.raises(UserError, match=r'phrases: "abcdef\.\.\." has 6 characters, this page takes 5'):
        limits.list_of("abcdef", "phrases")


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match=r"labels have to be texts of whole characters, not '\\ud800'"):
        Limits().list_of("a, \ud800", "labels")
