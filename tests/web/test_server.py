"""The server in process: answers and refusals over HTTP, bounded requests, and nothing fetched from elsewhere."""

import http.server
import re
import socket
import threading
import time
from pathlib import Path

import pytest

gradio_client = pytest.importorskip("gradio_client", reason='gradio is not installed (pip install ".[web]")')
pytest.importorskip("gradio", reason='gradio is not installed (pip install ".[web]")')
import httpx  # noqa: E402  (gradio's)
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from uniperceiver_v2.web import server  # noqa: E402
from uniperceiver_v2.web.index import Index  # noqa: E402
from uniperceiver_v2.web.limits import Limits  # noqa: E402
from uniperceiver_v2.web.page import UNEXPECTED, Page  # noqa: E402
from uniperceiver_v2.web.server import launch  # noqa: E402

WAIT = 120


def wait_until(holds) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def outside(monkeypatch) -> list[str]:
    """The hosts other than this machine that anything in this process asks for. None may be."""
    asked: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def watched_look_up(host, *args, **kwargs):
        if host not in (None, "", "localhost", "127.0.0.1", "0.0.0.0", "::1", b"127.0.0.1"):
            asked.append(str(host))
            raise socket.gaierror(f"no network: {host}")
        return look_up(host, *args, **kwargs)

    def watched_connect(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            asked.append(str(address[0]))
            raise OSError(f"no network: {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    yield asked
    assert asked == []


@pytest.fixture
def serve(answers, tmp_path, monkeypatch):
    """serve(index=None, examples=()): a running server's address. The servers are in serve.running."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    running = []

    def start(index=None, examples=()) -> str:
        running.append(launch(Page(answers, index, examples), uploads))
        return running[-1].local_url

    start.running = running
    yield start
    for blocks in running:
        blocks.close(verbose=False)


def client_of(address: str, tmp_path) -> Client:
    downloads, patience = str(tmp_path / "downloads"), {"timeout": WAIT}
    return Client(address, verbose=False, download_files=downloads, analytics_enabled=False, httpx_kwargs=patience)


def refused(client: Client, *inputs, api_name: str) -> str:
    with pytest.raises(AppError) as caught:
        client.predict(*inputs, api_name=api_name)
    return str(caught.value)


def test_every_tab_answers(serve, answers, folder, files, tmp_path):
    from PIL import Image

    index = Index(folder, answers.predictor, answers.worker, answers.limits).start()
    assert index.wait(WAIT)
    client = client_of(serve(index, files), tmp_path)
    picture = handle_file(files[0])
    drawn, table, said = client.predict(picture, "cat, dog", 0.02, api_name="/detect")
    assert Image.open(drawn).width == 480
    assert table["headers"] == ["name", "score", "left", "top", "right", "bottom"]
    assert {row[0] for row in table["data"]} <= {"cat", "dog"}
    assert said == f"{len(table['data'])} objects."
    _, table, _ = client.predict(picture, "the two", 0, api_name="/ground")
    assert {row[0] for row in table["data"]} == {"the two"}
    classes = client.predict(picture, "", api_name="/classify")
    assert {row["label"] for row in classes["confidences"]} == {"zero", "a red seven", "two"}
    text, likelihood = client.predict(picture, api_name="/caption")
    assert (text, likelihood) == answers.caption(files[0])
    for inputs, name in (
        (["a red seven"], "/search_by_text"),
        ([handle_file(folder / "03.png")], "/search_by_picture"),
    ):
        gallery, said = client.predict(*inputs, api_name=name)
        assert len(gallery) == 11
        assert "11 pictures" in said
    assert gallery[0]["caption"] == "1.00 · 03.png"
    assert str(folder) not in str(gallery)


def test_the_documents_program_runs(serve, files, tmp_path, monkeypatch, capsys):
    document = (Path(__file__).parents[2] / "docs" / "web.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    usual = ("http://127.0.0.1:7860/", "datasets/digit_scenes/images/test/000001000001.png")
    assert all(text in code for text in usual)
    monkeypatch.chdir(tmp_path)
    exec(code.replace(usual[0], serve()).replace(usual[1], files[0]), {})
    assert "likelihood" in capsys.readouterr().out


def test_bad_questions_get_sentences(serve, answers, files, tmp_path, monkeypatch, capfd):
    client = client_of(serve(), tmp_path)
    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    picture = handle_file(files[0])
    assert refused(client, None, "", 0.3, api_name="/detect").startswith("Choose a picture first")
    assert refused(client, handle_file(notes), "", 0.3, api_name="/detect").startswith("Notes.png: cannot identify")
    assert "takes 50 at most" in refused(client, picture, ",".join(map(str, range(60))), 0.3, api_name="/detect")
    assert "takes 200 at most" in refused(client, picture, "x" * 201, api_name="/classify")
    assert "&lt;b&gt;" in refused(client, picture, f"<b>{'x' * 201}", api_name="/classify")
    assert refused(client, picture, "", 0.3, api_name="/ground").startswith("Type phrases")
    assert "--search" in refused(client, "a seven", api_name="/search_by_text")
    monkeypatch.setattr(answers, "caption", lambda picture: 1 / 0)
    assert refused(client, picture, api_name="/caption").lower().startswith(UNEXPECTED)
    assert "ZeroDivisionError" not in capfd.readouterr().out


def test_only_uploads_are_read_and_no_address_is_fetched(serve, files, tmp_path):
    asked = []

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    address = serve()
    client = client_of(address, tmp_path)
    kind = {"_type": "gradio.FileData"}
    try:
        for path in (
            files[0],
            "/etc/passwd",
            f"http://127.0.0.1:{site.server_port}/x.png",
            "https://example.com/x.png",
        ):
            for more in ({}, {"url": path}):
                body = {"data": [{"path": path, "meta": kind, **more}, "", 0.3]}
                with httpx.Client(base_url=address, timeout=WAIT) as http_client:
                    event = http_client.post("/gradio_api/call/detect", json=body).json()["event_id"]
                    told = http_client.get(f"/gradio_api/call/detect/{event}").text
                assert told.startswith("event: error"), told
                assert "Traceback" not in told
    finally:
        site.shutdown()
        site.server_close()
    assert asked == []
    for path in ("/etc/passwd", files[0]):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403
    assert client.predict(handle_file(files[0]), api_name="/caption")


def test_large_requests_are_refused_before_they_are_read(serve, answers, files, tmp_path):
    answers.limits = Limits(upload_bytes=20_000)
    address = serve()
    url, large = f"{address}gradio_api/upload", b"x" * 100_000
    told = httpx.post(url, files={"files": ("x.png", large)})
    assert told.status_code == 413
    assert told.text == "This is too large: a file may have 0.0191 MB."

    def pieces():  # without a length
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        yield head
        for _ in range(20):
            yield large
        yield b"\r\n--b--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(url, content=pieces(), headers=kind).status_code == 413
    question = {"data": [None, "x" * 2**21, 0.3]}
    assert httpx.post(f"{address}gradio_api/call/detect", json=question).status_code == 413
    assert httpx.post(url, files={"files": ("x.png", b"x" * 21_000)}).status_code == 413  # gradio's own limit
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    answers.limits = Limits()
    assert client_of(address, tmp_path).predict(handle_file(files[0]), api_name="/caption")


def test_nothing_stays_of_an_upload_that_does_not_end_well(serve, answers, tmp_path):
    answers.limits = Limits(upload_bytes=20_000)
    address, head = serve(), b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\nx'
    kind, uploads = {"content-type": "multipart/form-data; boundary=b"}, tmp_path / "uploads"

    def stored() -> list[Path]:
        return [path for path in uploads.rglob("*") if path.is_file()]

    def pieces():  # the file is small, what follows it is not
        yield head + b'\r\n--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n'
        wait_until(stored)
        for _ in range(20):
            yield b"x" * 10_000
        yield b"\r\n--b--\r\n"

    told = httpx.post(f"{address}gradio_api/upload", content=pieces(), headers=kind)
    assert (told.status_code, stored()) == (413, [])
    assert told.text == "This is too large, beyond the maximum allowed size: a file may have 0.0191 MB."
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port)) as visitor:
        visitor.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 9999\r\n\r\n" + head
        )
        wait_until(stored)
    wait_until(lambda: not stored())


def test_a_full_disk_of_uploads_is_said(serve, answers, files, tmp_path):
    answers.limits = Limits(stored_bytes=10)
    address = serve()
    url = f"{address}gradio_api/upload"
    assert httpx.post(url, files={"files": ("x.png", b"x" * 100)}).status_code == 200
    told = httpx.post(url, files={"files": ("y.png", b"y" * 100)})
    assert (told.status_code, told.text) == (507, "The server has no room for uploads at the moment.")


def test_few_visitors_are_remembered(serve, files, tmp_path, monkeypatch):
    """Gradio keeps what each visitor sees, so a page that runs for long would fill the memory. Found by the soak."""
    monkeypatch.setattr(server, "SESSIONS", 2)
    address = serve()
    visitors = [client_of(address, tmp_path) for _ in range(4)]
    for client in (*visitors, visitors[0]):  # one comes back who has been forgotten
        client.predict(handle_file(files[0]), api_name="/caption")
    assert len(serve.running[-1].state_holder.session_data) == 2
    assert len(serve.running[-1]._queue.event_analytics) == 2


def test_slow_questions_leave_the_page_alone_and_fill_a_queue(serve, answers, files, tmp_path):
    answers.limits = Limits(waiting=2)
    address = serve()
    client, release = client_of(address, tmp_path), threading.Event()
    blocker = threading.Thread(target=answers.worker.run, args=(lambda: release.wait(WAIT),))
    blocker.start()
    try:
        jobs = [client.submit(handle_file(files[0]), api_name="/caption") for _ in range(8)]
        for _ in range(600):
            if sum(job.done() for job in jobs) >= 4:
                break
            threading.Event().wait(0.1)
        assert httpx.get(address, timeout=WAIT).status_code == 200
    finally:
        release.set()
        blocker.join()
    outcomes = [job.exception(timeout=WAIT) for job in jobs]
    full = [str(error) for error in outcomes if error is not None]
    assert outcomes.count(None) >= 2
    assert full
    assert all(re.search("(?i)queue is full|too many requests", text) for text in full)


def test_a_question_that_takes_too_long_gets_a_sentence(serve, answers, files, tmp_path):
    answers.limits = Limits(seconds=0.2)
    client, release = client_of(serve(), tmp_path), threading.Event()
    blocker = threading.Thread(target=answers.worker.run, args=(lambda: release.wait(WAIT),))
    blocker.start()
    try:
        assert refused(client, handle_file(files[0]), api_name="/caption").startswith("No answer within 0.2 s")
    finally:
        release.set()
        blocker.join()


def test_the_page_names_nothing_that_a_browser_would_fetch_elsewhere(serve, answers):
    told = httpx.get(serve())
    assert "default-src 'self'" in told.headers["content-security-policy"]
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?([^\"' >]+)", told.text)
    assert loaded
    assert [url for url in loaded if re.match(r"(?:\w+:)?//", url)] == []
    assert "fonts.g" not in told.text
    assert answers.learned in told.text
    for part in ("--zoo", "--config-file", "--weights"):  # how to load another model
        assert part in told.text


def test_what_was_not_trained_is_said(serve, answers):
    from uniperceiver_v2.web.page import UNTRAINED

    assert UNTRAINED not in httpx.get(serve()).text
    answers.trained = ("detection",)
    assert UNTRAINED in httpx.get(serve()).text
