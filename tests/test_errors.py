"""How programs end."""

import errno
import json
import os

import pytest
from detectron2.utils.logger import setup_logger

from uniperceiver_v2.errors import LONGEST_MESSAGE, UnreadableImage, UserError, exit_code, nearest


@pytest.mark.parametrize("result, code", [(None, 0), (0, 0), (3, 3)])
def test_a_program_ends_with_its_own_code(result, code, capsys):
    assert exit_code(lambda: result) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("SEED has to be whole"), 1, "error: SEED has to be whole\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.json"), 1, "No space left on device: 'out.json'\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_mistakes_are_said_without_a_traceback(error, code, said, capsys):
    def program() -> None:
        raise error

    assert exit_code(program) == code
    printed = capsys.readouterr()
    assert printed.err.endswith(said) and printed.err.count("\n") == said.count("\n") and not printed.out


def test_what_is_no_mistake_of_the_user_stays_an_error():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


def test_keys_of_yaml_may_be_numbers():
    assert nearest(3, {"boats": 1, 5: 2}) == "; valid: 5, boats"
    assert nearest("boat", {"boats": 1, 5: 2}) == "; did you mean 'boats'?"


def test_of_many_valid_names_the_first_are_told():
    assert nearest("zzz", [f"a{number:03}" for number in range(100)]).endswith("a018, a019 and 80 more")


@pytest.mark.parametrize("kind", [UserError, UnreadableImage])
def test_a_message_that_quotes_a_long_value_keeps_its_beginning_and_its_end(kind):
    short = "x" * LONGEST_MESSAGE
    assert str(kind(short)) == short
    message = str(kind(f"a.csv has no column {'x' * 20_000}; name one"))
    assert message.startswith("a.csv has no column x") and message.endswith("x; name one")
    assert "x [... shortened ...] x" in message and len(message) < LONGEST_MESSAGE + 50


def test_a_name_that_is_no_text_can_be_logged_and_printed(tmp_path, capfd):
    """The JSON of a data set may name a file by half a surrogate pair, which stopped every line of the log about it."""
    name = json.loads('"\\ud800.png"')
    logger = setup_logger(str(tmp_path), name="uniperceiver_v2.names")
    logger.warning(str(UnreadableImage(f"/data/{name}: it is missing")))
    assert exit_code(lambda: raised(UserError(f"{name} is wrong"))) == 1
    out, err = capfd.readouterr()
    for text in (out, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert "/data/\\ud800.png: it is missing" in text
    assert err == "error: \\ud800.png is wrong\n"


def raised(error: Exception) -> None:
    raise error
