"""How programs end."""

import errno
import os

import pytest

from uniperceiver_v2.errors import UserError, exit_code, nearest


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
