"""The bar on a terminal: it shows the progress of training, and other output does not break it."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest
from detectron2.engine import HookBase, TrainerBase, hooks
from tqdm import tqdm

from uniperceiver_v2.engine import progress
from uniperceiver_v2.engine.progress import ProgressBar, TaskProgressPrinter

MESSAGE = logging.getLogger("uniperceiver_v2.engine.somewhere")


class Screen:
    """A terminal of 100 columns: a stream to write to, and the lines that a user sees."""

    def __init__(self):
        self._own, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.stream = os.fdopen(terminal, "w", encoding="utf-8")
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        try:
            while chunk := os.read(self._own, 65536):
                self.written += chunk
        except OSError:  # the other end is closed
            pass

    def lines(self):
        self.stream.close()
        self._reader.join()
        os.close(self._own)
        lines, column = [""], 0
        for character in self.written.decode():
            if character == "\r":
                column = 0
            elif character == "\n":
                lines.append("")
            else:
                lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
                column += 1
                assert column <= 100, "a line that is too long is broken and cannot be cleared"
        return [line.rstrip() for line in lines]


@pytest.fixture
def screen(monkeypatch):
    """A terminal, which becomes stdout and stderr by ``screen.attach()``. The project's loggers write to it and to
    ``screen.file``."""
    screen = Screen()

    def attach():  # in the test itself: pytest sets its own streams before it
        monkeypatch.setattr(sys, "stdout", screen.stream)
        monkeypatch.setattr(sys, "stderr", screen.stream)

    screen.attach = attach
    monkeypatch.setattr(progress, "BAR_PERIOD", 0.0)
    screen.file = io.StringIO()
    screen.handlers = [logging.StreamHandler(screen.stream), logging.StreamHandler(screen.file)]
    log = logging.getLogger("uniperceiver_v2")
    level = log.level
    log.setLevel(logging.INFO)
    for handler in screen.handlers:
        log.addHandler(handler)
    yield screen
    log.setLevel(level)
    for handler in screen.handlers:
        log.removeHandler(handler)


class Loop(TrainerBase):
    """Two tasks in turns, with messages in between."""

    def __init__(self, stream=None):
        super().__init__()
        writer = hooks.PeriodicWriter([TaskProgressPrinter(["first", "second"], 40)], period=20)
        bar = ProgressBar(["first", "second"], stream)
        self.register_hooks([bar, hooks.IterationTimer(), writer, LastWord()])

    def run_step(self):
        task = ("first", "second")[self.iter % 2]
        self.storage.put_scalars(**{f"{task}/total_loss": float(self.iter), f"{task}/loss_a": 1.0, "data_time": 0.0})
        if self.iter == 17:
            MESSAGE.info("a message")
            print("a part", end=" and ")
            print("the rest")
            print("a warning", file=sys.stderr)


class LastWord(HookBase):
    """Logs after training, when the bar must be closed."""

    def after_train(self):
        MESSAGE.info("the end")


@pytest.mark.parametrize("others", [0, 2])
def test_the_bar_is_the_last_line_and_everything_else_stands_whole_above_it(screen, others):
    """Also where libraries have left bars of their own open."""
    opened = [tqdm(total=3, file=io.StringIO()) for _ in range(others)]
    screen.attach()
    before = sys.stdout, sys.stderr, screen.handlers[0].stream
    Loop().train(0, 40)
    assert (sys.stdout, sys.stderr, screen.handlers[0].stream) == before
    MESSAGE.info("later")
    assert screen.handlers[0].filters == []
    *above, bar, end, later, empty = screen.lines()
    assert above == ["a message", "a part and the rest", "a warning"]
    assert bar.startswith("100% ████")
    assert re.search(r" 40/40, eta 0:00:00 \d\.\d+ s/it first 19 second 20$", bar)  # means of the last twenty of each
    assert (end, later, empty) == ("the end", "later", "")
    logged = screen.file.getvalue().splitlines()
    assert [line.split()[0] for line in logged] == ["a", "20/40", "40/40", "the", "later"]
    for other in opened:
        other.close()


def test_a_handler_that_follows_stderr_writes_above_the_bar_too(screen):
    class Follower(logging.Handler):  # torch has one from 2.14 on, without a stream that could be set
        stream = property(lambda self: sys.stderr)

        def emit(self, record):
            self.stream.write(f"followed: {record.getMessage()}\n")

    follower = Follower()
    logging.getLogger("uniperceiver_v2.engine.somewhere").addHandler(follower)
    screen.attach()
    try:
        Loop().train(0, 40)
    finally:
        logging.getLogger("uniperceiver_v2.engine.somewhere").removeHandler(follower)
    assert screen.lines()[:2] == ["followed: a message", "a message"]


def test_a_resumed_run_begins_in_the_middle_and_a_failed_one_leaves_the_terminal_as_it_was(screen):
    class Failing(Loop):
        def run_step(self):
            super().run_step()
            if self.iter == 29:
                raise RuntimeError("broken")

    screen.attach()
    before = sys.stdout, sys.stderr, screen.handlers[0].stream
    with pytest.raises(RuntimeError, match="broken"):
        Failing().train(25, 40)
    assert (sys.stdout, sys.stderr, screen.handlers[0].stream) == before
    assert screen.handlers[0].filters == []
    bar = next(line for line in screen.lines() if "█" in line)
    assert " 29/40," in bar


def test_without_a_terminal_there_are_lines_alone(capsys):
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    log = logging.getLogger("uniperceiver_v2.engine.progress")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        Loop().train(0, 40)
        Loop(io.StringIO()).train(0, 40)
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
    assert [line.split()[0] for line in lines.getvalue().splitlines()] == ["20/40", "40/40"] * 2
    assert "█" not in "".join(capsys.readouterr())


def test_stdout_in_a_file_keeps_its_lines_while_the_bar_is_at_the_terminal(screen, monkeypatch, tmp_path):
    screen.attach()
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        screen.handlers[0].setStream(out)
        Loop().train(0, 40)
        assert sys.stdout is out
    text = (tmp_path / "out").read_text()
    assert [line.split()[0] for line in text.splitlines() if "/40" in line] == ["20/40", "40/40"]
    assert "a part and the rest" in text
    assert "█" not in text
    above, bar, *_ = screen.lines()
    assert above == "a warning"
    assert " 40/40" in bar


def test_a_process_without_the_bar_writes_as_it_always_does(screen):
    class Forking(Loop):
        def run_step(self):
            if self.iter == 5:
                child = os.fork()
                if not child:
                    print("from a worker", end="", flush=True)
                    os._exit(0)
                os.waitpid(child, 0)

    screen.attach()
    Forking().train(0, 40)
    screen.lines()
    assert screen.written.count(b"from a worker") == 1
