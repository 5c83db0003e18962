"""Downloads against a server of this machine: whole, resumed, checked, and never half there."""

import hashlib
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli_runs import Run, mistake
from tagi.data import fetch as fetching
from tagi.data.fetch import Source, fetch, recorded, unpack, verify
from tagi.errors import DataError

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves one content; may break off, or know no ranges."""

    content = CONTENT
    breaks_after: int | None = None
    knows_ranges = True
    says_range = True
    chunked = False
    """Sends no length; where it breaks off, it does so inside a chunk."""
    resets = False
    wrong_first: int | None = None
    """Where it goes on, whatever was asked for."""
    length: str | None = None
    """What it states as its length, whatever it has."""
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    close_connection = True

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        assert isinstance(server, Server)
        server.asked.append(wanted)
        if self.path != "/file":
            self.send_error(404, "not here")
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.knows_ranges else 0
        first = first if server.wrong_first is None else server.wrong_first
        whole, rest = len(server.content), server.content[first:]
        if wanted and server.knows_ranges and not rest:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{whole}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first and server.says_range:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", server.length or str(len(rest)))
        self.end_headers()
        sent = rest[: server.breaks_after]
        if server.chunked:
            self.wfile.write(b"%x\r\n%s" % (len(rest), sent) + (b"\r\n0\r\n\r\n" if sent == rest else b""))
        else:
            self.wfile.write(sent)
        if server.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def source(server: Server, path: str = "sub/file.bin") -> Source:
    return Source(f"http://127.0.0.1:{server.server_address[1]}/file", path)


def test_a_file_comes_whole_and_is_recorded(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    file = fetch(source(server), tmp_path, lambda done, total: told.append((done, total)))
    assert file.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert recorded(tmp_path) == {"sub/file.bin": hashlib.sha256(CONTENT).hexdigest()}
    fetch(source(server), tmp_path)
    assert server.asked == [None], "what is there is not asked for again"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on(server: Server, tmp_path: Path, knows_ranges: bool) -> None:
    server.breaks_after, server.knows_ranges = 3_000, knows_ranges
    with pytest.raises(DataError, match="broke off after 3,000 of 10,240 bytes"):
        fetch(source(server), tmp_path)
    assert not (tmp_path / "sub/file.bin").exists()
    assert (tmp_path / "sub/file.bin.part").stat().st_size == 3_000
    server.breaks_after = None
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-"]
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["file.bin"]


def test_a_download_that_only_lacked_its_name(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("trouble", ["chunked", "resets"])
def test_a_connection_that_breaks_inside_a_block(server: Server, tmp_path: Path, trouble: str) -> None:
    setattr(server, trouble, True)
    server.breaks_after = 3_000
    with pytest.raises(DataError, match=r"broke off.*; (what is here stays in file.bin.part, )?run again to go on"):
        fetch(source(server), tmp_path)
    assert not (tmp_path / "sub/file.bin").exists()
    server.breaks_after, server.resets = None, False
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [1, 5_000, 100_000])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_part_longer_than_the_whole_is_no_truth(
    server: Server, tmp_path: Path, extra: int, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"x" * extra)
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize("wrong", [2_999, 3_001])
def test_a_server_that_goes_on_elsewhere(server: Server, tmp_path: Path, wrong: int) -> None:
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:3_000])
    server.wrong_first = wrong
    with pytest.raises(DataError, match="another part of the file than the whole"):
        fetch(source(server), tmp_path)
    server.wrong_first = None
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT


def test_a_server_that_says_little(server: Server, tmp_path: Path) -> None:
    """A part without its range; a length that is no number."""
    part = tmp_path / "sub/file.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:3_000])
    server.says_range = False
    assert fetch(source(server), tmp_path).read_bytes() == CONTENT
    server.length = "99999"
    with pytest.raises(DataError, match=r"broke off after 10,240 of 99,999 bytes"):
        fetch(source(server, "other.bin"), tmp_path)
    assert not (tmp_path / "other.bin").exists()


def test_a_server_that_hangs(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    with silent, pytest.raises(DataError, match=r"cannot be downloaded \(timed out\)"):
        fetch(Source(f"http://127.0.0.1:{silent.getsockname()[1]}/file", "file"), tmp_path)


def test_what_does_not_speak_http(tmp_path: Path) -> None:
    talker = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        connection, _ = talker.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail ready\r\n")

    threading.Thread(target=talk, daemon=True).start()
    with talker, pytest.raises(DataError, match="cannot be downloaded"):
        fetch(Source(f"http://127.0.0.1:{talker.getsockname()[1]}/file", "file"), tmp_path)


def test_a_changed_file_is_named_whoever_changed_it(server: Server, tmp_path: Path) -> None:
    file = fetch(source(server), tmp_path)
    file.write_bytes(b"other")
    with pytest.raises(DataError, match="has changed since it was downloaded"):
        fetch(source(server), tmp_path)
    file.unlink()
    server.content = b"new"
    with pytest.raises(DataError, match="now gives another file than the first time"):
        fetch(source(server), tmp_path)
    assert list((tmp_path / "sub").iterdir()) == []
    (tmp_path / "mine").write_bytes(b"x")
    with pytest.raises(DataError, match="mine: has no entry"):
        verify(tmp_path, "mine")


def test_servers_that_are_not_there(server: Server, tmp_path: Path) -> None:
    url = source(server).url
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(Source(f"{url}-no", "file"), tmp_path)
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch(Source("http://127.0.0.1:1/file", "file"), tmp_path)
    assert not (tmp_path / "file").exists()


def archive(folder: Path, *names: str) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, name)
    return path


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path, "x-1/tasks/a.json", "x-1/tasks/b/c.json", "x-1/README", "x-1/tasksother/d")
    assert unpack(path, tmp_path / "out", (("tasks", "here"),)) == 2
    found = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.json"))
    assert found == ["here/a.json", "here/b/c.json"]


@pytest.mark.parametrize("name", ["x/../../evil", "/evil", "x\\..\\evil"])
def test_no_path_leaves_the_folder(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path, "x/tasks/a", name)
    with pytest.raises(DataError, match="leaves the archive's folder"):
        unpack(path, tmp_path / "out", (("tasks", "tasks"),))
    assert not (tmp_path / "out").exists()


def test_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path, "x/tasks/a")
    with pytest.raises(DataError, match="holds no splits"):
        unpack(path, tmp_path / "out", (("splits", "splits"),))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"x/tasks/a", 20)] ^= 1  # in the content
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="is a damaged archive"):
        unpack(path, tmp_path / "out", (("tasks", "tasks"),))
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="is a damaged archive"):
        unpack(path, tmp_path / "out", (("tasks", "tasks"),))


def test_from_the_command_line(server: Server, tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = archive(tmp_path, "ni-2.6/tasks/t1.json", "ni-2.6/splits/default/test_tasks.txt", "ni-2.6/LICENSE")
    server.content = made.read_bytes()
    published = fetching.SNI[0]
    monkeypatch.setattr(fetching, "SNI", (Source(source(server).url, published.path, published.unpack),))
    result = tagi("data", "fetch", "sni", "-o", tmp_path / "sni")
    assert "2 files unpacked" in " ".join(result.out.split())
    assert (tmp_path / "sni/tasks/t1.json").exists()
    assert not (tmp_path / "sni/LICENSE").exists()
    listed = tagi("data", "fetch", "c4", "-o", "data/c4", "--shards", 2, "--dry-run").out
    assert [line.split(" -> ")[1] for line in listed.splitlines()] == [
        "data/c4/c4-train.00000-of-01024.json.gz",
        "data/c4/c4-train.00001-of-01024.json.gz",
        "data/c4/c4-validation.00000-of-00008.json.gz",
    ]
    assert "StoryCloze" in tagi("data", "fetch", "p3", "-o", "data/p3", "--dry-run").err


def test_what_cannot_be_written(server: Server, tagi: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(fetching, "SNI", (source(server, "f"),))
    mistake(tagi("data", "fetch", "sni", "-o", tmp_path / "file"), str(tmp_path / "file"))
