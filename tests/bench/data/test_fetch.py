"""P68: no connection but an explicit download; https only, size and MD5 checked, whole or not at all."""

from __future__ import annotations

import ast
import hashlib
import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.data import DataError, catalogue, fetch, load, locate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_keywords):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_sets_never_connect(name, no_network):
    assert len(load(name).train_all)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "tinyimagenet"])
def test_offline_never_connects(name, no_network):
    with pytest.raises(DataError, match="found in none of"):
        load(name, offline=True)


def test_a_set_that_is_there_is_not_downloaded(small_mnist, tmp_path, no_network):
    small_mnist.npz(tmp_path)
    assert load("mnist", data_root=tmp_path).info["official"]


def test_tinyimagenet_is_never_downloaded_and_says_how_to_get_it(no_network):
    with pytest.raises(DataError, match=r"fetch cs231n\.stanford\.edu/tiny-imagenet-200\.zip"):
        load("tinyimagenet")


def test_a_download_fills_the_cache_in_torchvisions_layout_and_is_read_from_there(small_mnist, tmp_path, monkeypatch):
    source = small_mnist.idx(tmp_path / "server", packed=True)
    served(monkeypatch, source)
    assert load("mnist").info["official"]
    cache = locate.cache_folder()
    assert sorted(path.name for path in cache.rglob("*")) == sorted(
        ["MNIST", "raw", *(path.name for path in source.iterdir())]
    )


def served(monkeypatch, source: Path) -> None:
    """Every file of `source` as if torchvision listed it and an https server gave it."""
    files = sorted(source.iterdir())
    listed = [(f.name, [f"https://one.invalid/{f.name}"], hashlib.md5(f.read_bytes()).hexdigest()) for f in files]
    monkeypatch.setattr("bench.data._torchvision.archives", lambda _: listed)
    real = fetch.fetch
    monkeypatch.setattr(
        fetch, "fetch", lambda address, target, md5: real((source / Path(address).name).as_uri(), target, md5)
    )


def test_a_broken_download_leaves_nothing_behind_and_names_the_way_by_hand(small_mnist, tmp_path, monkeypatch):
    """Three of four files in the cache would be taken for a broken set by the next run."""
    source = small_mnist.idx(tmp_path / "server", packed=True)
    served(monkeypatch, source)
    (source / "train-labels-idx1-ubyte.gz").write_bytes(b"an error page")
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz cannot be downloaded \(one\.invalid: sent another"
    ):
        load("mnist")
    assert [path for path in locate.cache_folder().rglob("*") if path.is_file()] == []


def test_the_other_address_is_tried_when_the_first_fails(tmp_path, monkeypatch):
    tried = []

    def fail_once(address, target, md5):
        tried.append(address)
        if len(tried) == 1:
            raise OSError("down")

    monkeypatch.setattr(fetch, "fetch", fail_once)
    fetch._fetch_first(catalogue.entry("mnist"), ["https://a.invalid/x", "https://b.invalid/x"], tmp_path / "x", "0")
    assert tried == ["https://a.invalid/x", "https://b.invalid/x"]


@pytest.mark.parametrize("address", ["http://a.invalid/x", "file:///etc/hostname", "ftp://a.invalid/x"])
def test_only_https_addresses_are_tried(address, tmp_path, no_network):
    with pytest.raises(DataError, match="no https address"):
        fetch._fetch_first(catalogue.entry("mnist"), [address], tmp_path / "x", "0")


def test_another_md5_is_refused(tmp_path):
    (tmp_path / "source").write_bytes(b"content")
    with pytest.raises(ValueError, match="sent another file"):
        fetch.fetch((tmp_path / "source").as_uri(), tmp_path / "target", "0" * 32)


def test_more_than_the_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_MAX_BYTES", 2**20)
    (tmp_path / "source").write_bytes(bytes(2**21))
    with pytest.raises(ValueError, match="more than 1 MB"):
        fetch.fetch((tmp_path / "source").as_uri(), tmp_path / "target", "0" * 32)
    assert (tmp_path / "target").stat().st_size <= 2**20


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/x", "file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_redirect_away_from_https_is_refused(tmp_path, target):
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(OSError, match=r"not https|not allowed"):
            fetch.fetch(f"http://127.0.0.1:{server.server_port}/x", tmp_path / "x", "0" * 32)


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("bench.data._torchvision.archives", lambda _: [("x", ["https://a.invalid/x"], "0")])
    with pytest.raises(DataError, match=r"cache folder .* cannot be written .*\$BENCH_HOME"):
        load("mnist")


def test_a_missing_torchvision_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="torchvision is not installed"):
        load("mnist")


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvision_imports_on_this_torch_and_names_every_archive():
    """With a CPU-only torch a plain import fails; a subprocess, because a process imports it once."""
    pytest.importorskip("PIL")
    code = (
        "from bench.data._torchvision import archives\n"
        "for name, n in (('mnist', 4), ('fashion_mnist', 4), ('cifar10', 1)):\n"
        "    found = archives(name)\n"
        "    assert len(found) == n and all(len(md5) == 32 and urls for _, urls, md5 in found), found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "No module named 'torchvision'" in done.stderr:
        pytest.skip("torchvision is not installed")
    assert done.returncode == 0, done.stderr


def test_only_one_module_imports_torchvision():
    guilty = [
        path.relative_to(ROOT).as_posix()
        for folder in ("bench", "methods")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any(
            name.split(".")[0] == "torchvision"
            for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        )
    ]
    assert guilty == []  # _torchvision.py imports it by name, inside a function


def test_reading_needs_no_torchvision(small_mnist, tmp_path):
    small_mnist.npz(tmp_path)
    load("mnist", data_root=tmp_path)
    code = "import sys, bench.data; bench.data.load('digits'); sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
