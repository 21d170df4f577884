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
    signal.signal(signal.SIGALRM, before)


def message_of(read: Callable[[], object]) -> str:
    """Of the refusal, or "" if there is none."""
    signal.alarm(10)
    try:
        read()
    except (UserError, UnreadableImage) as error:
        return str(error)
    finally:
        signal.alarm(0)
    return ""


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(name, tmp_path, catalogs):
    kind = kind_of(name)
    names = {kind.damaged(random.Random(number)).name for number in range(200)}
    for number, file in enumerate(sorted(names)):
        path = tmp_path / str(number) / file
        path.parent.mkdir()
        os.mkfifo(path)
        message = message_of(lambda path=path: kind.read(path, False))
        if ".index." in file:  # of a shard: it is made anew
            assert not message and path.is_file()
        else:
            assert kind.is_named(path, message), message
