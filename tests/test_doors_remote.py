"""Servers, manifests and caches of strangers: bounded in bytes and time, inside of one folder."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shard_fixtures import DrawnSource
from test_shards import write_all

import unigs.remote
from unigs.remote import Cache, RemoteError
from unigs.shards import DamagedSample, ShardError, ShardReader, read_manifests
from unigs.shards.manifest import digest_manifest

FOLDER = "coco-train"
pytestmark = pytest.mark.filterwarnings("ignore")


class Server:
    """Serves a folder; ``answer`` may be replaced by a stranger's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = send_ranges

    def get(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        self.asked[name] += 1
        self.ranges.append(request.headers.get("Range"))
        path = self.root / name
        if not path.is_file():
            return request.send_error(404)
        write = request.wfile.write

        def count(data: bytes) -> int:
            self.sent[name] += len(data)
            return write(data)

        request.wfile.write = count  # type: ignore[method-assign]
        with suppress(ConnectionError):
            self.answer(request, path.read_bytes())
        request.close_connection = True


def send_ranges(request: BaseHTTPRequestHandler, data: bytes) -> None:
    wanted = request.headers.get("Range")
    if not wanted:
        return send_all(request, data)
    first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
    headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    send(request, data[first : last + 1], 206, headers)


def send_all(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data, 200, {})


def send(request, data: bytes, status: int, headers: dict[str, str], length=None) -> None:
    request.send_response(status)
    headers = {"Content-Length": str(len(data) if length is None else length), **headers}
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)


@contextmanager
def serve(root: Path):
    server = Server(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.get(self)

        def log_message(self, *_) -> None:
            pass

    class Http(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, *_) -> None:
            pass

    with Http(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_all(out, [DrawnSource("coco", 40, size_px=32)], 20)
    return out


@pytest.fixture
def root(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "root"))


@pytest.fixture
def server(root):
    with serve(root) as server:
        yield server


@pytest.fixture
def cache(tmp_path) -> Cache:
    limits = {"timeout_s": 1.0, "min_bytes_per_s": 1000, "window_s": 0.3}
    return Cache(tmp_path / "cache", attempts=4, pause_s=0.01, **limits)


def pick_shard(root: Path, k: int = 0) -> tuple[str, str, int]:
    """(name under the root, sha256, bytes)."""
    path = root / FOLDER / f"{FOLDER}-{k:06d}.tar"
    data = path.read_bytes()
    return f"{FOLDER}/{path.name}", hashlib.sha256(data).hexdigest(), len(data)


def address(server: Server, k: int = 0) -> tuple[str, str, int]:
    """(URL, sha256, bytes) of a shard."""
    name, *promised = pick_shard(server.root, k)
    return f"{server.url}/{name}", *promised


def fetch(server: Server, cache: Cache, k: int = 0) -> Path:
    return cache.fetch(*address(server, k))


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- names ---------------------------------------------------------------------------------------

NO_HASHES = ["", "0" * 63, "0" * 65, "G" * 64, "../victim/aaaaaaaaaa" + "0" * 44, "A" * 64, None, 7]


@pytest.mark.parametrize("sha256", NO_HASHES, ids=ascii)
def test_a_hash_that_is_none_touches_no_file(server, cache, tmp_path, sha256):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "aaaaaaaaaa-index.npy").write_text("precious")
    before = list_tree(tmp_path)
    path = server.root / FOLDER / "manifest.json"
    content = json.loads(path.read_text())
    content["index_sha256"] = sha256
    path.write_text(json.dumps({**content, "digest": digest_manifest(content)}))
    with pytest.raises(ShardError, match="index_sha256: a sha256 of 64 hex digits"):
        read_manifests(server.url, cache=cache)
    with pytest.raises(RemoteError, match="a sha256 of 64 hex digits"):
        cache.fetch(f"{server.url}/a", sha256, 5)
    assert list_tree(tmp_path) == before


def test_room_is_made_among_copies_only(server, cache, tmp_path):
    copy = fetch(server, cache)
    (cache.folder / "fid-statistics.npz").write_bytes(bytes(5000))
    (cache.folder / f"{'a' * 20}-folder").mkdir()
    (tmp_path / "precious").write_bytes(bytes(5000))
    (cache.folder / f"{'b' * 20}-link").symlink_to(tmp_path / "precious")
    cache.max_bytes = 1
    kept = list_tree(cache.folder) - {copy.name}
    cache.make_room(1)
    assert list_tree(cache.folder) == kept
    assert (tmp_path / "precious").exists()


def test_the_copy_that_was_used_last_stays(server, cache):
    first, second = (fetch(server, cache, k) for k in (0, 1))
    fetch(server, cache, 0)
    cache.max_bytes = first.stat().st_size + 1
    cache.make_room(0)
    assert (first.exists(), second.exists()) == (True, False)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_lies_where_a_copy_should_is_not_followed(server, cache, tmp_path, kind):
    name, sha256, _ = pick_shard(server.root)
    path = cache.locate(f"{server.url}/{name}", sha256)
    cache.folder.mkdir()
    (tmp_path / "secret").write_bytes((server.root / name).read_bytes())
    if kind == "link":
        path.symlink_to(tmp_path / "secret")
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    started = time.monotonic()
    with suppress(RemoteError):
        assert stat.S_ISREG(fetch(server, cache).lstat().st_mode)
    assert time.monotonic() - started < 2


# --- slow and endless servers --------------------------------------------------------------------


def drip(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, b"", 200, {}, len(data))
    for k in range(len(data)):
        request.wfile.write(data[k : k + 1])
        request.wfile.flush()
        time.sleep(0.05)


def drip_header(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.connection.sendall(b"HTTP/1.0 200 OK\r\n")
    for k in range(400):
        request.connection.sendall(b"X-%d: y\r\n" % k)
        time.sleep(0.05)


def run_on(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(data)
    while True:
        request.wfile.write(bytes(1 << 16))


def promise_terabytes(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data, 200, {}, 1 << 40)


def be_silent(request: BaseHTTPRequestHandler, data: bytes) -> None:
    time.sleep(20)


STRANGERS = [drip, drip_header, run_on, promise_terabytes, be_silent]


@pytest.mark.parametrize("answer", STRANGERS)
def test_a_bad_answer_for_a_manifest_ends_in_words(server, cache, answer):
    server.answer = answer
    cache.attempts, cache.timeout_s = 2, 0.4
    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"expected .* got .*folders\.json"):
        cache.read(f"{server.url}/folders.json", 1 << 20)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("answer", STRANGERS)
def test_a_bad_answer_for_a_shard_ends_in_words(server, cache, answer):
    server.answer = answer
    cache.attempts, cache.timeout_s = 2, 0.4
    started = time.monotonic()
    if answer is run_on:  # cut where the promised bytes have come
        assert fetch(server, cache).stat().st_size == pick_shard(server.root)[2]
        assert server.asked.total() == 1
    else:
        with pytest.raises(RemoteError, match=r"expected .* got .*000000\.tar"):
            fetch(server, cache)
    assert time.monotonic() - started < 5
    assert not list(cache.folder.glob("*.tmp"))


def test_slowness_is_forgiven_half_as_often_as_failure(server, cache):
    server.answer = drip
    with pytest.raises(RemoteError, match=r"within 2 attempts, got TooSlow.* bytes a second"):
        fetch(server, cache)
    assert server.asked.total() == 2


def test_a_server_as_slow_as_is_allowed_is_waited_for(server, cache):
    def send_slowly(request, data: bytes) -> None:
        send(request, b"", 200, {}, len(data))
        for at in range(0, len(data), 16_000):
            request.wfile.write(data[at : at + 16_000])
            request.wfile.flush()
            time.sleep(0.1)

    server.answer = send_slowly
    assert (
        fetch(server, cache).read_bytes() == (server.root / pick_shard(server.root)[0]).read_bytes()
    )
    assert server.asked.total() == 1


# --- one download per shard ----------------------------------------------------------------------


def test_a_server_without_ranges_is_asked_once(server, cache, monkeypatch):
    monkeypatch.setattr(unigs.remote, "PART_BYTES", 4096)
    server.answer = send_all
    name, _, size = pick_shard(server.root)
    assert size > 4 * 4096
    assert fetch(server, cache).read_bytes() == (server.root / name).read_bytes()
    assert server.asked[name] == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_what_came_before_a_cut_is_kept(server, cache, monkeypatch, ranges):
    monkeypatch.setattr(unigs.remote, "PART_BYTES", 1 << 20)
    name, _, size = pick_shard(server.root)
    cuts = [0.3, 0.6]

    def cut(request, data: bytes) -> None:
        if not cuts:
            return (send_ranges if ranges else send_all)(request, data)
        wanted = request.headers.get("Range") if ranges else None
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        headers = {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if wanted else {}
        end = int(size * cuts.pop(0))
        send(request, data[first:end], 206 if wanted else 200, headers, size - first)

    server.answer = cut
    assert fetch(server, cache).read_bytes() == (server.root / name).read_bytes()
    assert server.asked[name] == 3
    if ranges:
        assert server.sent[name] < size * 1.1 + 3000  # headers
        starts = [int(r.split("=")[1].split("-")[0]) for r in server.ranges if r]
        assert starts == sorted(starts)
        assert starts[-1] == int(size * 0.6)


def refuse_read(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data, 200, {"Content-Encoding": "gzip"})


def send_longer(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data + b"x", 200, {})


def send_elsewhere(request: BaseHTTPRequestHandler, data: bytes) -> None:
    send(request, data, 206, {"Content-Range": f"bytes 7-9/{len(data)}"})


@pytest.mark.parametrize("answer", [refuse_read, send_longer, send_elsewhere])
def test_an_answer_that_says_another_thing_than_was_asked_is_refused(server, cache, answer):
    server.answer = answer
    with pytest.raises(RemoteError, match=r"within 4 attempts, got .*expected"):
        fetch(server, cache)


@pytest.mark.parametrize("status", [401, 403, 410, 404])
def test_a_refusal_is_told_at_once(server, cache, status):
    server.answer = lambda request, data: request.send_error(status)
    with pytest.raises(RemoteError, match="expected a file, got"):
        fetch(server, cache)
    assert server.asked.total() == 1


# --- damaged copies ------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)


def flip_in_silence(path: Path) -> None:
    kind = path.stat()
    flip(path)
    os.utime(path, ns=(kind.st_atime_ns, kind.st_mtime_ns))


DAMAGES = [flip, flip_in_silence, lambda p: os.truncate(p, 3000), lambda p: p.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_fetched_again_once(server, cache, damage):
    name = pick_shard(server.root)[0]
    copy = fetch(server, cache)
    damage(copy)
    for _ in range(2):
        manifests = read_manifests(server.url, cache=cache)
        reader = ShardReader(manifests)
        assert [reader.read(FOLDER, 0, j).key for j in range(20)] == [
            f"coco-{j:05d}" for j in range(20)
        ]
    assert server.asked[name] == 2
    assert copy.read_bytes() == (server.root / name).read_bytes()


def test_a_copy_damaged_while_it_is_read_is_fetched_again(server, cache):
    reader = ShardReader(read_manifests(server.url, cache=cache))
    reader.read(FOLDER, 0, 5)
    flip_in_silence(next(cache.folder.glob("*000000.tar")))
    assert reader.read(FOLDER, 0, 0).key == "coco-00000"


def test_a_shard_that_is_no_better_at_its_source_is_hashed_once_and_told_with_its_copy(
    server, cache, monkeypatch
):
    manifests = read_manifests(server.url, cache=cache)
    manifest = manifests[FOLDER]
    rows = manifest.index.copy()
    rows["crc"][:9] ^= 1
    object.__setattr__(manifest, "index", rows)
    reader = ShardReader(manifests)
    reader.read(FOLDER, 0, 12)
    hashed = []
    real = unigs.remote.hash_descriptor
    monkeypatch.setattr(unigs.remote, "hash_descriptor", lambda d: hashed.append(d) or real(d))
    for j in range(9):
        with pytest.raises(DamagedSample, match=r"CRC-32.*000000\.tar \(copy .*cache/"):
            reader.read(FOLDER, 0, j)
    assert len(hashed) == 1
    assert server.asked[pick_shard(server.root)[0]] == 1


def test_a_copy_is_hashed_once_a_machine_and_again_when_it_has_changed(server, cache, monkeypatch):
    hashed = []
    real = unigs.remote.hash_descriptor
    monkeypatch.setattr(unigs.remote, "hash_descriptor", lambda d: hashed.append(d) or real(d))
    copy = fetch(server, cache)
    assert len(hashed) == 1  # as it came
    for _ in range(3):
        fetch(server, Cache(cache.folder))
    assert len(hashed) == 1
    os.utime(copy)  # touched, not damaged
    for _ in range(3):
        fetch(server, Cache(cache.folder))
    assert len(hashed) == 2
    assert server.asked.total() == 1


# --- shared machines -----------------------------------------------------------------------------


def run_as_another(work: Callable, *arguments) -> str:
    """What ``work`` gives or raises in a process of a user without rights."""
    if os.getuid() != 0:
        pytest.skip("only root may become another user")
    here, there = multiprocessing.get_context("fork").Pipe()

    def run() -> None:
        os.setegid(65534)
        os.seteuid(65534)
        try:
            there.send(f"done {work(*arguments)}")
        except BaseException as error:
            there.send(f"{type(error).__name__}: {error}")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    assert here.poll(20)
    process.join()
    return here.recv()


@pytest.fixture
def shared(tmp_path, cache) -> Cache:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        with suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o055)
    cache.folder.mkdir()
    cache.folder.chmod(0o1777)
    return cache


def test_copies_of_another_user_are_used(server, shared):
    path = fetch(server, shared)
    os.utime(path)  # and not stamped
    path.with_name(f"{path.name}.lock").touch(0o644)
    assert run_as_another(shared.fetch, *address(server)) == f"done {path}"
    second = run_as_another(shared.fetch, *address(server, 1))  # beside those of the first
    assert second.startswith("done")
    assert Path(second[5:]).stat().st_uid == 65534
    assert server.asked.total() == 2


def test_a_lock_of_another_user_is_no_hindrance(server, shared):
    name, sha256, _ = pick_shard(server.root)
    path = shared.locate(f"{server.url}/{name}", sha256)
    for mode in (0o644, 0o600):
        path.with_name(f"{path.name}.lock").touch()
        path.with_name(f"{path.name}.lock").chmod(mode)
        assert run_as_another(shared.fetch, *address(server)) == f"done {path}"
        path.unlink()


def test_a_readonly_cache_gives_what_it_has_and_words_for_the_rest(server, shared):
    path = fetch(server, shared)
    shared.folder.chmod(0o555)
    assert run_as_another(shared.fetch, *address(server)) == f"done {path}"
    told = run_as_another(shared.fetch, *address(server, 1))
    assert told.startswith("RemoteError: expected a folder to keep a copy of")
    assert str(shared.folder) in told


@pytest.mark.parametrize("damage", [flip, lambda path: path.chmod(0o600)])
def test_a_bad_copy_of_another_user_is_named(server, shared, damage):
    path = fetch(server, shared)
    damage(path)
    told = run_as_another(shared.fetch, *address(server))
    assert told.startswith("RemoteError: expected")
    assert str(path) in told


def test_a_full_disk_is_told_at_once_and_leaves_nothing(server, cache):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))
    try:
        with pytest.raises(RemoteError, match=r"expected room .*cache/.*UNIGS_CACHE"):
            fetch(server, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert server.asked.total() == 1
    assert list_tree(cache.folder) == set()


def test_modes_of_copies_follow_the_umask(server, cache):
    old = os.umask(0o027)
    try:
        path = fetch(server, cache)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# --- pipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [("yes", "at most"), ("sleep 20", "TooSlow"), ("false", "exit code 1"), ("(exit 3)", "code 3")],
)
def test_a_pipe_is_bounded_too(cache, command, words):
    cache.allow_pipe, cache.attempts = True, 1
    cache.timeout_s = 0.3
    started = time.monotonic()
    with pytest.raises(RemoteError, match=words):
        cache.read(f"pipe:{command}", 100_000)
    assert time.monotonic() - started < 3


def test_a_file_system_that_hangs_is_left_behind(cache, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    cache.attempts, cache.timeout_s, cache.min_bytes_per_s = 1, 0.2, 1 << 20
    started = time.monotonic()
    with pytest.raises(RemoteError, match="TooSlow"):
        cache.read(f"file://{tmp_path}/fifo", 1000)
    assert time.monotonic() - started < 3
    with suppress(OSError):  # let the reader go
        os.close(os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK))


def test_a_port_that_nobody_serves_is_told(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/folders.json"
    with pytest.raises(RemoteError, match="within 4 attempts"):
        cache.read(url)
