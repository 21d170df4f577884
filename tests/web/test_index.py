"""Searching a folder: its order is the predictor's, it is bounded, and it is built beside questions."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.predictor import api
from uniperceiver_v2.web import index as module
from uniperceiver_v2.web.index import Index, pictures_in
from uniperceiver_v2.web.limits import Limits

WAIT = 120


@pytest.fixture
def index(answers, folder):
    made = Index(folder, answers.predictor, answers.worker, answers.limits).start()
    assert made.wait(WAIT)
    yield made
    made.close()


def test_pictures_of_a_folder(folder, tmp_path):
    names = [str(path.relative_to(folder)) for path in pictures_in(folder, 100)]
    assert names == [*(f"{number:02d}.png" for number in range(10)), "broken.png", "ö/z ä.jpg"]
    assert len(list(pictures_in(folder, 3))) == 3
    with pytest.raises(UserError, match="there is no folder"):
        list(pictures_in(tmp_path / "gone", 3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no picture in"):
        list(pictures_in(tmp_path / "empty", 3))


@pytest.mark.parametrize("rerank", [0, 1])
def test_a_text_finds_what_the_predictor_finds(answers, folder, rerank):
    task = answers.predictor.task("retrieval")
    task.settings = replace(task.settings, rerank=rerank)
    index = Index(folder, answers.predictor, answers.worker, answers.limits).start()
    assert index.wait(WAIT)
    names = [*(f"{number:02d}.png" for number in range(10)), "ö/z ä.jpg"]
    images = answers.predictor.encode([str(folder / name) for name in names])
    expected = answers.predictor.retrieve(images, "a red seven").images_of(0, 11)
    found = index.shown(answers.search(index.gallery(), "a red seven", 11))
    assert [match.name for match in found] == [names[match.place] for match in expected]
    np.testing.assert_allclose([m.similarity for m in found], [m.similarity for m in expected], atol=1e-4)
    cosines = [match.similarity for match in found]
    assert (cosines == sorted(cosines, reverse=True)) == (not rerank), "ten of eleven are compared again"
    assert index.said() == "11 pictures can be searched; 1 could not be read."


def test_a_picture_finds_itself_with_its_thumbnail(index, answers, folder, pixels):
    best = index.nearest(answers.feature_of(str(folder / "03.png")), 2)[0]
    assert best.name == "03.png"
    assert best.similarity == pytest.approx(1, abs=1e-4)
    assert best.thumbnail.size == (50, 43)
    difference = np.asarray(best.thumbnail).astype(int) - pixels(43, 50, seed=3)
    assert np.abs(difference).mean() < 8


def test_a_large_folder_is_cut(answers, folder):
    index = Index(folder, answers.predictor, answers.worker, replace(answers.limits, searched=4)).start()
    assert index.wait(WAIT)
    assert index.said() == "4 pictures can be searched. The folder has more: the first 4 are taken."
    assert len(index.shown(answers.search(index.gallery(), "x", 12))) == 4


def test_it_is_built_beside_questions(answers, folder, files, monkeypatch):
    """A question is answered between two batches, and searching works on what is there."""
    monkeypatch.setattr(module, "AT_A_TIME", 2)
    embed, first, released = answers.predictor.gallery, threading.Event(), threading.Event()
    encode, run, queued, steps = answers.predictor.encode, answers.worker.run, threading.Event(), []

    def slow(images):
        steps.append("batch")
        encoded = embed(images)
        if first.is_set():
            released.wait(WAIT)
        first.set()
        return encoded

    def encoding(images):
        steps.append("question")
        return encode(images)

    def running(step, deadline=None):
        if deadline is not None:  # of a question; batches have none
            queued.set()
        return run(step, deadline)

    index = Index(folder, answers.predictor, answers.worker, Limits())
    with pytest.raises(UserError, match="no picture can be searched yet"):
        index.nearest(np.zeros(32, np.float32), 3)
    monkeypatch.setattr(answers.predictor, "gallery", slow)
    monkeypatch.setattr(answers.predictor, "encode", encoding)
    monkeypatch.setattr(answers.worker, "run", running)
    index.start()
    assert first.wait(WAIT)
    asked = threading.Thread(target=answers.caption, args=(files[0],))
    asked.start()
    assert queued.wait(WAIT)
    released.set()
    asked.join(WAIT)
    assert not asked.is_alive()
    assert index.wait(WAIT)
    assert "11 pictures" in index.said()
    assert 0 < steps.index("question") < steps.index("batch", steps.index("question"))


def test_progress_is_said(answers, folder):
    index = Index(folder, answers.predictor, answers.worker, Limits())
    index._add([("one", np.zeros((20, 30, 3), np.uint8))])
    assert index.said() == "1 of 12 pictures can be searched so far."


def test_large_pictures_of_the_folder_are_skipped(answers, folder):
    index = Index(folder, answers.predictor, answers.worker, replace(answers.limits, pixels=45 * 50)).start()
    assert index.wait(WAIT)
    assert "6 pictures can be searched; 6 could not be read." in index.said()


def test_closing_stops_it(answers, folder):
    index = Index(folder, answers.predictor, answers.worker, Limits())
    index.close()
    index.start()
    assert index.wait(WAIT)
    assert index.said().startswith("0 of 12 pictures")


def test_a_search_by_text_is_one_step_of_the_models_thread(answers, folder, monkeypatch):
    """What compares the pictures again is the model, which one thread owns, and it is told on the page."""
    pytest.importorskip("gradio", reason='gradio is not installed (pip install ".[web]")')
    from uniperceiver_v2.web.page import Page

    task = answers.predictor.task("retrieval")
    task.settings = replace(task.settings, rerank=24)
    index = Index(folder, answers.predictor, answers.worker, answers.limits).start()
    assert index.wait(WAIT)
    retrieve, threads, pairs = answers.predictor.retrieve, [], []
    likelihoods = api.caption_log_likelihoods

    def asked(gallery, text):
        threads.append(threading.current_thread().name)
        return retrieve(gallery, text)

    def compared(model, images, captions, of_pairs):
        pairs.append(len(of_pairs))
        return likelihoods(model, images, captions, of_pairs)

    monkeypatch.setattr(answers.predictor, "retrieve", asked)
    monkeypatch.setattr(api, "caption_log_likelihoods", compared)
    gallery, said = Page(answers, index).search_by_text("a red seven")
    assert len(gallery) == 11 and "11 pictures" in said
    assert pairs == [11] and len(threads) == 1 and threads[0].startswith("model")
    assert "the 24 with the largest cosines" in Page(answers, index)._order_of_search()
    with pytest.raises(UserError, match="type what to look for"):
        Page(answers, index).search_by_text("  ")
