"""Published files: fetched once, whole, and by one process."""

from __future__ import annotations

import http.server
import multiprocessing
import threading
import time

import pytest

from rjem_cli.engine.data.fetch import RemoteFile, fetched, sha256_of
from rjem_cli.errors import AbsentError
from rjem_cli.paths import weights_dir


@pytest.fixture
def server(monkeypatch):
    """Serves what `server.content` is; `server.file` is how the whole file is known."""
    whole = b"weights" * 1000

    class Handler(http.server.BaseHTTPRequestHandler):
        content = whole
        asked = 0

        def do_GET(self):
            type(self).asked += 1
            time.sleep(0.3)  # long enough for others to ask too, if nothing holds them back
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.content)

        def log_message(self, *arguments):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    Handler.file = RemoteFile("x.pth", f"http://127.0.0.1:{listener.server_port}/x.pth", len(whole), sha256_of(whole))
    monkeypatch.delenv("RJEM_OFFLINE")
    yield Handler
    listener.shutdown()


def test_files_are_fetched_once_and_a_damaged_file_is_fetched_again(server, own_home):
    def fetch():
        return fetched(server.file, weights_dir())

    assert fetch() == fetch() == server.content and server.asked == 1
    kept = own_home / "cache" / "weights" / "x.pth"
    kept.write_bytes(server.content[:500])
    assert fetch() == server.content == kept.read_bytes() and server.asked == 2
    kept.write_bytes(b"W" + server.content[1:])
    assert fetch() == server.content == kept.read_bytes() and server.asked == 3


def test_a_download_that_cannot_be_kept_is_used_and_said(server, own_home):
    (own_home / "cache" / "weights" / "x.pth").mkdir(parents=True)
    notes = []
    assert fetched(server.file, weights_dir(), tell=notes.append) == server.content
    assert len(notes) == 1 and "cannot write" in notes[0] and "downloaded again next time" in notes[0]


@pytest.mark.parametrize(
    "change", [lambda whole: whole[:-1], lambda whole: whole + b"x", lambda whole: b"W" + whole[1:]]
)
def test_a_download_that_is_not_the_published_file_is_not_kept(server, own_home, change):
    server.content = change(server.content)
    with pytest.raises(AbsentError, match="not the published file"):
        fetched(server.file, weights_dir())
    assert not (own_home / "cache" / "weights" / "x.pth").exists()


def test_without_a_network_the_reason_is_said(monkeypatch, own_home):
    gone = RemoteFile("x.pth", "http://127.0.0.1:9/x.pth", 10, "0")
    with pytest.raises(AbsentError, match="RJEM_OFFLINE forbids the download"):
        fetched(gone, weights_dir())
    monkeypatch.delenv("RJEM_OFFLINE")
    with pytest.raises(AbsentError, match="cannot be downloaded"):
        fetched(gone, weights_dir())


def fetch_one(file) -> int:
    return len(fetched(file, weights_dir()))


def test_four_processes_fill_one_empty_cache(server):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.map(fetch_one, 4 * [server.file])
    assert found == 4 * [len(server.content)] and server.asked == 1
