"""Laws of remote shards: the same stream over any wire, through failures, in bounded space."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shard_fixtures import DrawnSource
from test_shards import write_all
from test_streams import assert_equal, make_tensor, stack

import unigs.remote
from unigs.plan import Plan
from unigs.remote import Cache, RemoteError
from unigs.shards import ShardError, read_manifests, verify_shards
from unigs.streams import StreamDataset, StreamLoader

STALL_S = 20
pytestmark = pytest.mark.filterwarnings("ignore")


class Server:
    """Serves a folder over HTTP; ``faults`` is consulted per request, first come first served."""

    def __init__(self, root: Path) -> None:
        self.root, self.ranges = root, True
        self.faults: list[str] = []
        self.asked: Counter[str] = Counter()
        self.busy = self.most_busy = 0
        self.pause_s = 0.0
        self.lock = threading.Lock()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.lstrip("/")
        with self.lock:
            self.asked[path] += 1
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            fault = self.faults.pop(0) if self.faults else ""
        try:
            time.sleep(self.pause_s)
            self.send(request, self.root / path, fault)
        finally:
            with self.lock:
                self.busy -= 1

    def send(self, request: BaseHTTPRequestHandler, file: Path, fault: str) -> None:
        if fault.isdecimal() or not file.is_file():
            return request.send_error(int(fault or 404))
        data, wanted = file.read_bytes(), request.headers.get("Range")
        size = len(data)
        if wanted and self.ranges:
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault in ("cut", "stall"):
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            time.sleep(STALL_S if fault == "stall" else 0)
            return request.connection.close()
        request.wfile.write(data)


@contextmanager
def serve(root: Path):
    server = Server(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_all(out, [DrawnSource("coco", 60), DrawnSource("entityseg", 10)], 5)
    return out


@pytest.fixture
def server(shards):
    with serve(shards) as server:
        yield server


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", timeout_s=0.5, pause_s=0.01)


def run_stream(root, cache=None, **options) -> list:
    manifests = read_manifests(root, cache=cache)
    sizes = {name: manifest.sizes for name, manifest in manifests.items()}
    plan = Plan(sizes, {"x": 1}, {"x": dict.fromkeys(sizes, 1)}, 1, window_shards=2)
    options = {"global_batch_size": 8, "steps_per_epoch": 12, **options}
    return list(StreamLoader(StreamDataset(manifests, plan, make_tensor), stack, **options))


def pick_shard(root: Path) -> tuple[str, str, int]:
    """(name under the root, sha256, bytes) of one shard."""
    path = sorted(root.glob("coco-train/*.tar"))[0]
    data = path.read_bytes()
    return f"{path.parent.name}/{path.name}", hashlib.sha256(data).hexdigest(), len(data)


def copies(cache: Cache) -> list[Path]:
    return [path for path in cache.folder.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranges", [True, False])
def test_http_gives_the_same_stream_as_the_disk(shards, server, tmp_path, workers, ranges):
    server.ranges = ranges
    cache = Cache(tmp_path / "cache")  # a patient one: a loaded machine is no reason to ask again
    assert_equal(run_stream(server.url, cache, num_workers=workers), run_stream(shards))
    fetched = {name: n for name, n in server.asked.items() if name.endswith((".tar", ".npy"))}
    assert set(fetched.values()) == {1}  # once per machine, whatever the number of processes
    asked = server.asked.total()
    assert_equal(run_stream(server.url, cache), run_stream(shards))
    assert server.asked.total() - asked <= 3  # folders.json and the manifests; shards are kept


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "stall", "flip"])
def test_a_failed_request_is_repeated(shards, server, cache, fault):
    name, sha256, size = pick_shard(shards)
    server.faults = [fault, fault]
    start = time.monotonic()
    path = cache.fetch(f"{server.url}/{name}", sha256, size)
    assert path.read_bytes() == (shards / name).read_bytes()
    assert server.asked[name] == 3
    assert [path] == copies(cache)
    assert time.monotonic() - start < STALL_S  # a server that falls silent is not waited for


def test_a_stream_survives_a_bad_server(shards, server, cache):
    server.faults = ["", "500", "", "cut", "flip", "", "503", "stall", "", "500", "cut"] * 2
    assert_equal(run_stream(server.url, cache, num_workers=1), run_stream(shards))


def test_only_the_part_that_failed_is_asked_for_again(shards, server, cache, monkeypatch):
    monkeypatch.setattr(unigs.remote, "PART_BYTES", 4096)
    name, sha256, size = pick_shard(shards)
    parts = -(-size // 4096)
    assert parts > 3
    server.faults = ["", "", "cut"]
    cache.fetch(f"{server.url}/{name}", sha256, size)
    assert server.asked[name] == parts + 1


def test_pauses_grow(server, cache, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.faults = ["500"] * 99
    with pytest.raises(RemoteError, match=r"within 6 attempts, got .*500.*folders\.json"):
        cache.read(f"{server.url}/folders.json")
    waited = [pause for pause in pauses if pause]
    assert waited == [0.01 * 2**n for n in range(5)]


def test_what_is_not_there_is_told_at_once(server, cache):
    with pytest.raises(RemoteError, match=r"FileNotFoundError.*nothing-here"):
        cache.fetch(f"{server.url}/nothing-here", "0" * 64, 5)
    assert server.asked["nothing-here"] == 1


def test_another_file_than_promised_is_never_kept(shards, server, cache):
    name, _, size = pick_shard(shards)
    cache.attempts = 2
    with pytest.raises(RemoteError, match="expected sha256 0000"):
        cache.fetch(f"{server.url}/{name}", "0" * 64, size)
    assert copies(cache) == []


def test_the_folder_stays_within_its_bound(shards, server, cache):
    sizes = [path.stat().st_size for path in shards.rglob("*.tar")]
    cache.max_bytes = 5 * max(sizes)
    over = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            files = list(cache.folder.glob("*")) if cache.folder.exists() else []
            total = 0
            for path in files:
                if path.exists():
                    total += path.stat().st_size if path.exists() else 0
            over.append(total - cache.max_bytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ours = run_stream(server.url, cache, steps_per_epoch=30)
    finally:
        stop.set()
        watcher.join()
    assert_equal(ours, run_stream(shards, steps_per_epoch=30))
    assert max(over) <= 4 * max(sizes)  # what four fetchers may have under way
    cache.make_room(0)
    assert sum(path.stat().st_size for path in copies(cache)) <= cache.max_bytes


def test_shards_ahead_are_fetched_side_by_side(server, cache):
    server.pause_s = 0.1
    run_stream(server.url, cache, steps_per_epoch=1)
    assert server.most_busy > 1


def fetch_slowly(url: str, sha256: str, size: int, cache: Cache) -> None:
    assert os.path.getsize(cache.fetch(url, sha256, size)) == size


def test_many_processes_fetch_a_file_once(shards, server, cache):
    name, sha256, size = pick_shard(shards)
    server.pause_s = 0.2
    context = multiprocessing.get_context("fork")
    arguments = (f"{server.url}/{name}", sha256, size, cache)
    processes = [context.Process(target=fetch_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert server.asked[name] == 1


def test_a_damaged_copy_of_the_index_is_fetched_again(server, cache):
    read_manifests(server.url, cache=cache)
    for copy in copies(cache):
        copy.write_bytes(b"damaged")
    assert len(read_manifests(server.url, cache=cache)) == 2


def test_pipes_run_only_if_allowed(shards, cache):
    root = f"pipe:cat {shards}"
    with pytest.raises(RemoteError, match="allow_pipe=True"):
        read_manifests(root, cache=cache)
    cache.allow_pipe = True
    assert_equal(run_stream(root, cache), run_stream(shards))


def test_one_folder_may_be_named_by_its_manifest(server, cache):
    found = read_manifests(f"{server.url}/coco-train/manifest.json", cache=cache)
    assert list(found) == ["coco-train"]


def test_verifying_needs_the_files(server):
    with pytest.raises(ShardError, match="expected a local folder"):
        verify_shards(server.url)


def test_s3_gives_the_same_stream_as_the_disk(shards, tmp_path, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "for-tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}"}
        bucket = s3fs.S3FileSystem(**options)
        bucket.mkdir("bucket")
        bucket.put(f"{shards}/", "bucket/shards/", recursive=True)
        cache = Cache(tmp_path / "cache", timeout_s=5, options={"s3": options})
        assert_equal(run_stream("s3://bucket/shards", cache, num_workers=1), run_stream(shards))
        with pytest.raises(RemoteError, match="nothing"):
            read_manifests("s3://bucket/nothing", cache=cache)
    finally:
        server.stop()
