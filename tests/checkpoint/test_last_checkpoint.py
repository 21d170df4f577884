"""``--resume`` goes on from the checkpoint that is named, or stops: it never begins anew unasked."""

import builtins
import os

import pytest
from torch import nn

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.errors import UserError


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = AtomicCheckpointer(nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000007")
    (tmp_path / "last_checkpoint").unlink()
    return checkpointer


def a_folder(path):
    path.mkdir()


def a_dangling_link(path):
    path.symlink_to("nowhere")


UNUSABLE = {
    "a folder": a_folder,
    "a dangling link": a_dangling_link,
    "empty": lambda path: path.write_bytes(b""),
    "blanks": lambda path: path.write_bytes(b" \n"),
    "binary": lambda path: path.write_bytes(bytes(range(128, 256))),
    "control characters": lambda path: path.write_bytes(b"model\0.pth"),
    "endless": lambda path: path.write_bytes(b"x" * 100_000),
    "a file that is not there": lambda path: path.write_text("model_0000009.pth"),
    "a file elsewhere": lambda path: path.write_text("/etc/passwd"),
    "a file above": lambda path: path.write_text("../model_0000007.pth"),
    "a folder's name": lambda path: path.write_text("."),
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_last_checkpoint_that_cannot_be_used_stops_the_run(checkpointer, tmp_path, make):
    make(tmp_path / "last_checkpoint")
    assert checkpointer.has_checkpoint()
    with pytest.raises(UserError) as caught:
        checkpointer.resume_or_load("", resume=True)
    message = str(caught.value)
    assert message.startswith("--resume: ") and str(tmp_path / "last_checkpoint") in message
    assert "model_0000007.pth" in message and "remove it to begin anew" in message


def test_one_without_the_right_to_read_it_stops_the_run(checkpointer, tmp_path, monkeypatch):
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    opened = builtins.open

    def forbidding(path, *arguments, **keywords):
        if str(path).endswith("last_checkpoint"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", forbidding)
    with pytest.raises(UserError, match=r"last_checkpoint cannot be read \(Permission denied\)"):
        checkpointer.resume_or_load("", resume=True)


def test_a_folder_without_the_right_to_look_into_it_stops_the_run(checkpointer, monkeypatch):
    def forbidding(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "lstat", forbidding)
    with pytest.raises(UserError, match="cannot be looked for: Permission denied"):
        checkpointer.resume_or_load("", resume=True)


def test_without_one_a_run_begins_and_with_a_good_one_it_goes_on(checkpointer, tmp_path):
    assert not checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file() == ""
    assert checkpointer.resume_or_load("", resume=True) == {}
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth\n")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000007.pth")
