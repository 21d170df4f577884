"""The event storage and its writers."""

import io
import json
import logging
import re
import statistics

import numpy as np
import pytest
import torch
from detectron2.utils import events
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from hypothesis import given, settings
from hypothesis import strategies as st


class TestStorage:
    def test_the_innermost_context_is_current(self):
        assert not has_event_storage()
        with EventStorage() as outer:
            assert get_event_storage() is outer
            with EventStorage() as inner:
                assert get_event_storage() is inner
            assert get_event_storage() is outer
            assert has_event_storage()
        with pytest.raises(AssertionError):
            get_event_storage()

    def test_the_context_ends_with_an_exception_too(self):
        with pytest.raises(RuntimeError), EventStorage():
            raise RuntimeError
        assert not has_event_storage()

    def test_history_and_latest(self):
        with EventStorage(start_iter=5) as storage:
            storage.put_scalar("loss", torch.tensor(3.0))
            storage.step()
            storage.put_scalars(loss=1, accuracy=0.5)
        assert storage.iter == storage.iteration == 6
        assert storage.history("loss").values() == [(3.0, 5), (1.0, 6)]
        assert storage.latest() == {"loss": (1.0, 6), "accuracy": (0.5, 6)}
        assert set(storage.histories()) == {"loss", "accuracy"}
        with pytest.raises(KeyError):
            storage.history("other")

    @pytest.mark.skipif("detectron2_core" not in events.__file__, reason="upstream keeps a million values")
    def test_a_long_training_keeps_the_last_values_and_the_mean_of_all(self):
        storage = EventStorage()
        for iteration in range(2010):
            storage.put_scalar("loss", iteration, cur_iter=iteration)
        history = storage.history("loss")
        assert history.values() == [(float(n), n) for n in range(10, 2010)]
        assert history.global_avg() == pytest.approx(2009 / 2)

    def test_an_explicit_iteration(self):
        storage = EventStorage(3)
        storage.put_scalar("a", 1.0, cur_iter=10)
        storage.put_scalars(cur_iter=11, b=2.0)
        assert storage.latest() == {"a": (1.0, 10), "b": (2.0, 11)}
        storage.iter = 12
        storage.put_scalar("a", 5.0)
        assert storage.latest()["a"] == (5.0, 12)

    def test_hints_are_kept_and_must_not_change(self):
        storage = EventStorage()
        storage.put_scalar("lr", 0.1, smoothing_hint=False)
        storage.put_scalar("loss", 0.1)
        assert storage.smoothing_hints() == {"lr": False, "loss": True}
        with pytest.raises(AssertionError, match="lr"):
            storage.put_scalar("lr", 0.1)

    @given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 12))
    @settings(derandomize=True, deadline=None, max_examples=60)
    def test_medians_are_over_iterations_not_over_numbers(self, drawn, window):
        """As for a task's loss, which is put only in the iterations that draw the task."""
        storage, reported = EventStorage(), []
        for iteration, is_drawn in enumerate([*drawn, True]):
            if is_drawn:
                value = float(iteration * 7 % 5)
                storage.put_scalar("loss", value)
                storage.put_scalar("exact", value, smoothing_hint=False)
                reported.append((iteration, value))
            storage.step()
        last = reported[-1][0]
        recent = [value for iteration, value in reported if iteration > last - window]
        smoothed = storage.latest_with_smoothing_hint(window)
        assert smoothed["loss"] == (statistics.median(recent), last)
        assert smoothed["exact"] == (reported[-1][1], last)
        assert storage.count_samples("loss", window) == len(recent)

    def test_name_scope(self):
        storage = EventStorage()
        with storage.name_scope("scenes"):
            storage.put_scalar("loss", 1.0)
        storage.put_scalar("loss", 2.0)
        assert storage.latest() == {"scenes/loss": (1.0, 0), "loss": (2.0, 0)}


class TestJSONWriter:
    def test_each_iteration_is_one_line_and_written_once(self, tmp_path):
        path = tmp_path / "metrics.json"
        with EventStorage() as storage:
            writer = JSONWriter(str(path), window_size=2)
            for value in (1.0, 5.0, 2.0):
                storage.put_scalar("loss", value)
                storage.put_scalar("lr", value, smoothing_hint=False)
                storage.step()
            writer.write()
            writer.write()
            storage.put_scalar("AP", 30.0, smoothing_hint=False)
            writer.write()
            writer.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines == [{"iteration": 2, "loss": 3.5, "lr": 2.0}, {"iteration": 3, "AP": 30.0}]

    def test_an_existing_file_is_continued(self, tmp_path):
        path = tmp_path / "metrics.json"
        for start in (0, 10):
            with EventStorage(start) as storage:
                storage.put_scalar("loss", start)
                writer = JSONWriter(str(path))
                writer.write()
                writer.close()
        assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 10]

    def test_scalars_of_different_iterations(self, tmp_path):
        path = tmp_path / "metrics.json"
        with EventStorage() as storage:
            storage.put_scalar("a", 1.0, cur_iter=4)
            storage.put_scalar("b", 2.0, cur_iter=7)
            writer = JSONWriter(str(path))
            writer.write()
            writer.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(lines, key=lambda line: line["iteration"]) == [
            {"iteration": 4, "a": 1.0},
            {"iteration": 7, "b": 2.0},
        ]


def test_a_writer_must_say_how_it_writes():
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()


def test_tensorboard_files_hold_scalars_pictures_and_histograms(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.zeros((3, 4, 6), dtype=np.uint8)
    picture[0, 1, 2] = 255
    with EventStorage(5) as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 2.0)
        storage.put_image("picture", picture)
        storage.put_histogram("histogram", torch.tensor([[0.0, 1.0], [1.0, 4.0]]), bins=4)
        writer.write()
        writer.write()  # nothing is written twice
        storage.step()
        storage.put_scalar("loss", 4.0)
        writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0}).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 2.0), (6, 3.0)]
    (image,) = events.Images("picture")
    decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(decoded, picture.transpose(1, 2, 0))
    (histogram,) = events.Histograms("histogram")
    value = histogram.histogram_value
    assert (value.min, value.max, value.sum, value.sum_squares) == (0, 4, 6, 18)
    counts = {limit: count for limit, count in zip(value.bucket_limit, value.bucket) if count}
    assert list(counts.values()) == [1, 2, 1]


class TestPrinter:
    def line(self, caplog, max_iter=100, **put):
        with caplog.at_level(logging.INFO, "detectron2.utils.events"), EventStorage(9) as storage:
            for name, value in put.items():
                storage.put_scalar(name, value, smoothing_hint=name != "lr")
            CommonMetricPrinter(max_iter).write()
        return caplog.messages[-1] if caplog.messages else None

    @pytest.fixture(autouse=True)
    def _propagating(self, monkeypatch):
        monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)

    def test_what_a_line_holds(self, caplog):
        line = self.line(caplog, total_loss=1.5, loss_box=0.25, temperature=9.0, lr=0.0125, time=2.0, data_time=0.5)
        for part in (
            "eta: 0:03:00",  # 90 more iterations of 2 seconds
            "iter: 9",
            "total_loss: 1.5",
            "loss_box: 0.25",
            "lr: 0.0125",
            "data_time: 0.5000",
            "last_data_time: 0.5000",
        ):
            assert re.search(rf"(^|\s){re.escape(part)}(\s|$)", line), (part, line)
        assert re.search(r"(^|\s)time: 2\.0000", line)
        assert "temperature" not in line

    def test_metrics_by_their_mark(self, caplog):
        with caplog.at_level(logging.INFO, "detectron2.utils.events"), EventStorage() as storage:
            storage.put_scalar("[metric]accuracy", 0.75)
            CommonMetricPrinter().write()
        assert "[metric]accuracy: 0.75" in caplog.messages[-1]

    def test_without_times_and_rate(self, caplog):
        line = self.line(caplog, max_iter=None, total_loss=1.0)
        assert "lr: N/A" in line
        assert "eta" not in line
        assert "time" not in line

    def test_losses_are_medians(self, caplog):
        with caplog.at_level(logging.INFO, "detectron2.utils.events"), EventStorage() as storage:
            for loss in (1.0, 2.0, 100.0):
                storage.put_scalar("total_loss", loss)
                storage.step()
            CommonMetricPrinter(window_size=3).write()
        assert "total_loss: 2 " in caplog.messages[-1]

    def test_nothing_after_the_last_iteration(self, caplog):
        assert self.line(caplog, max_iter=9, total_loss=1.0) is None
