"""The destinations of log records, and log calls that limit repetitions."""

import logging

import pytest
from detectron2.utils import logger as logger_module
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)


@pytest.fixture
def name():
    """A logger's name that only this test uses. Its handlers are removed afterwards."""
    unique = "a_logger_for_this_test"
    setup_logger.cache_clear()
    yield unique
    logging.getLogger(unique).handlers.clear()
    setup_logger.cache_clear()


class TestSetup:
    def test_a_folder_gets_a_log_txt(self, tmp_path, name):
        setup_logger(str(tmp_path / "new"), name=name)
        logging.getLogger(name + ".part").debug("hello")
        text = (tmp_path / "new/log.txt").read_text()
        assert "hello" in text
        assert name + ".part DEBUG" in text

    @pytest.mark.parametrize("ending", ["txt", "log"])
    def test_a_file_is_taken_as_it_is(self, tmp_path, name, ending):
        setup_logger(str(tmp_path / f"mine.{ending}"), name=name).info("hello")
        assert "hello" in (tmp_path / f"mine.{ending}").read_text()

    def test_a_second_call_adds_nothing(self, tmp_path, name):
        loggers = {setup_logger(str(tmp_path), name=name) for _ in range(2)}
        loggers.pop().info("hello")
        assert not loggers
        assert (tmp_path / "log.txt").read_text().count("hello") == 1

    def test_other_ranks_write_files_only(self, tmp_path, name, capsys):
        setup_logger(str(tmp_path), distributed_rank=2, name=name).info("hello")
        assert "hello" in (tmp_path / "log.txt.rank2").read_text()
        assert not (tmp_path / "log.txt").exists()
        assert capsys.readouterr().out == ""

    def test_terminal_lines(self, name, capsys):
        setup_logger(name=name, abbrev_name="short", color=True)
        logging.getLogger(name + ".part").info("hello")
        logging.getLogger(name + ".part").warning("careful")
        first, second = capsys.readouterr().out.splitlines()
        assert "short.part" in first and first.endswith("hello")
        assert "WARNING" in second and second.endswith("careful")
        assert "WARNING" not in first

    def test_plain_terminal_lines(self, name, capsys):
        setup_logger(name=name, color=False).error("broken")
        assert capsys.readouterr().out.endswith(f"{name} ERROR: broken\n")

    def test_stdout_can_be_left_out(self, name, capsys):
        setup_logger(name=name, configure_stdout=False).warning("hello")
        assert capsys.readouterr().out == ""

    def test_propagation(self, name):
        assert setup_logger(name=name).propagate is False
        assert setup_logger(name=name, enable_propagation=True).propagate is True


class TestRepetition:
    @pytest.fixture(autouse=True)
    def _levels(self, caplog):
        caplog.set_level(logging.DEBUG)

    def test_the_first_n_of_a_line(self, caplog):
        for i in range(5):
            log_first_n(logging.INFO, f"number {i}", n=2)
        assert caplog.messages == ["number 0", "number 1"]
        assert caplog.records[0].name == __name__
        assert caplog.records[0].levelno == logging.INFO

    def test_another_line_counts_for_itself(self, caplog):
        log_first_n(logging.INFO, "same")
        log_first_n(logging.INFO, "same")
        assert len(caplog.messages) == 2

    def test_by_message(self, caplog):
        for text in ("by message", "by message", "by another message"):
            log_first_n(logging.INFO, text, key="message")
        log_first_n(logging.INFO, "by message", key="message")
        assert caplog.messages == ["by message", "by another message"]

    def test_by_line_and_message(self, caplog):
        for text in ("a", "a", "b"):
            log_first_n(logging.INFO, text, key=("caller", "message"))
        log_first_n(logging.INFO, "a", key=("caller", "message"))
        assert caplog.messages == ["a", "b", "a"]

    def test_every_nth(self, caplog):
        for i in range(7):
            log_every_n(logging.WARNING, str(i), n=3, name="someone")
        assert caplog.messages == ["0", "3", "6"]
        assert {record.name for record in caplog.records} == {"someone"}

    def test_every_n_seconds(self, caplog, monkeypatch):
        clock = iter([100.0, 104.0, 105.5, 109.0, 110.5])
        monkeypatch.setattr(logger_module.time, "time", lambda now=None: now or times[-1])
        times = [0.0]
        for i in range(5):
            times.append(next(clock))
            log_every_n_seconds(logging.INFO, str(i), n=5)
        assert caplog.messages == ["0", "2", "4"]


def test_small_table():
    header, rule, row = create_small_table({"AP": 41.23456, "AP50": 60.0}).splitlines()
    assert header.replace(" ", "") == "|AP|AP50|"
    assert set(rule) <= set("|:-")
    assert row.replace(" ", "") == "|41.235|60.000|"
