"""The program: its options, and its sentences for what cannot be served."""

import importlib.util
import os
import re
import signal
import subprocess
import sys

import pytest

from uniperceiver_v2.web import __main__ as program
from uniperceiver_v2.web.limits import Limits


def load(*options: str):
    args = program.parser().parse_args(options)
    return program.load(args, program.limits_of(args))


def test_the_zoos_model_is_the_default(monkeypatch):
    named = []
    monkeypatch.setattr(program.Predictor, "from_zoo", lambda name, device: named.append((name, device)))
    assert load()[1:] == (Limits(), "digit_scenes/small")
    load("--zoo", "other/model", "--device", "cpu")
    assert named == [("digit_scenes/small", None), ("other/model", "cpu")]


def test_directories_and_runs_are_loaded(directory, predictor, tmp_path):
    import torch

    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    config.write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict()}, weights)
    expected = predictor.model.state_dict()
    for options in ([str(directory)], ["--config-file", str(config), "--weights", str(weights)]):
        loaded, _, name = load(*options)
        assert name == options[-1] or name == str(config)
        found = loaded.model.state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_limits_are_options():
    args = program.parser().parse_args(
        ["--max-upload=5", "--max-megapixels=2", "--max-search=7", "--max-waiting=3", "--time-limit=9"]
    )
    assert program.limits_of(args) == Limits(
        upload_bytes=5 * 2**20, pixels=2_000_000, searched=7, waiting=3, seconds=9.0
    )
    assert program.limits_of(program.parser().parse_args([])) == Limits()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--zoo", "no/such"], "no/such"),
        (["/no/such/directory"], "/no/such/directory"),
        (["--weights", "x.pth"], "--config-file"),
        (["--time-limit", "0"], "--time-limit has to be more than 0"),
        (["--examples", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_what_cannot_be_served_is_said(options, said, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert program.main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_a_missing_gradio_is_said(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert program.main([]) == 1
    assert 'pip install "uniperceiver-v2[web]"' in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason='gradio is not installed (pip install ".[web]")')
def test_the_program_serves_until_ctrl_c(directory, folder, tmp_path):
    import httpx

    command = [sys.executable, "-m", "uniperceiver_v2.web", str(directory), "--search", str(folder)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = subprocess.Popen(
        [*command, "--examples", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # A shell that started the tests in the background has told them to ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert server.stdout.readline().startswith("The model has learned")
        address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline()).group()
        assert "Uni-Perceiver v2" in httpx.get(address, timeout=180).text
        assert list(temporary.glob("uniperceiver_v2_web_*"))
        server.send_signal(signal.SIGINT)
        assert server.wait(180) in (0, 130)
        assert "Traceback" not in server.stderr.read()
        assert not list(temporary.glob("uniperceiver_v2_web_*"))
    finally:
        server.kill()
