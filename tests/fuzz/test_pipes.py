"""A named pipe in place of a file is refused by its name. Opening one waits for a writer, without end."""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uniperceiver_v2.errors import UnreadableImage, UserError

sys.path.insert(0, str(Path(__file__).parent))
from campaign import kind_of

sys.path.pop(0)

KINDS = (
    *("annotations", "checkpoints", "clips", "images", "model_directories"),
    *("public_formats", "resume", "settings", "shards"),
)


class Waited(BaseException):
    """No Exception, which a reader might take for one of the disk's and try again."""


@pytest.fixture(autouse=True)
def not_for_ever():
    def stop(*_):
        raise Waited("for a writer")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(read: Callable[[], object]) -> str:
    signal.alarm(10)
    with pytest.raises((UserError, UnreadableImage)) as caught:
        read()
    signal.alarm(0)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(name, tmp_path, catalogs):
    kind = kind_of(name)
    names = {kind.damaged(random.Random(number)).name for number in range(200)}
    for number, file in enumerate(sorted(name for name in names if ".index." not in name)):  # made anew if unusable
        path = tmp_path / str(number) / file
        path.parent.mkdir()
        os.mkfifo(path)
        message = refused(lambda path=path: kind.read(path, False))
        assert kind.is_named(path, message), message
