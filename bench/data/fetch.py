"""Downloads into the cache folder: https only, size and MD5 checked, complete under its name or not there at all.

torchvision says where the archives lie (`_torchvision.archives`); the transfer is ours, because torchvision's own
retries over plain http and writes under the final name. What arrives is read and checked like any other file.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from .catalogue import Entry
from .errors import DataError, shown

_MAX_BYTES = 256 * 2**20  # the largest archive, CIFAR-10's, has 170 MB
_TIMEOUT_S = 30.0  # without a byte
_CHUNK = 2**18
_FOLDERS = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw", "cifar10": ""}  # torchvision's own layout
_MORE_MIRRORS = {  # torchvision's only address of Fashion-MNIST is plain http
    "fashion_mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
}


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https and nowhere else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise OSError(f"redirected to {newurl[:80]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(data: Entry, cache: Path) -> None:
    """Fetch the official archives of mnist, fashion_mnist or cifar10 into `cache`, in torchvision's layout.

    Raises:
        DataError: torchvision is missing, or no address gives the file; the message says what each one answered.
    """
    try:
        from ._torchvision import archives

        wanted = archives(data.name)
    except ImportError as error:
        raise DataError(f"{data.name}: cannot be downloaded, torchvision is not installed ({error})") from error
    folder = cache / _FOLDERS[data.name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as here:
            for name, addresses, md5 in wanted:
                if data.name in _MORE_MIRRORS:
                    addresses = [_MORE_MIRRORS[data.name] + name, *addresses]
                _fetch_first(data, addresses, Path(here, name), md5)
            for name, _, _ in wanted:  # only when all are complete: a set with one file would be taken for a broken one
                os.replace(Path(here, name), folder / name)
    except OSError as error:
        where = f"the cache folder {shown(cache)} cannot be written ({error.strerror or error})"
        raise DataError(f"{data.name}: {where}; set $BENCH_HOME to a folder that can") from error


def _fetch_first(data: Entry, addresses: list[str], target: Path, md5: str) -> None:
    answers = []
    for address in addresses:
        if urlsplit(address).scheme != "https":
            continue
        try:
            fetch(address, target, md5)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            answers.append(f"{urlsplit(address).netloc}: {reason}")
    raise DataError(f"{data.name}: {target.name} cannot be downloaded ({'; '.join(answers) or 'no https address'})")


def fetch(address: str, target: Path, md5: str) -> None:
    """Download one file to `target`; what is there after an error is incomplete.

    Raises:
        OSError: no connection, no space, a redirect away from https. ValueError: too large, or another MD5.
    """
    digest = hashlib.md5(usedforsecurity=False)
    opener = urllib.request.build_opener(_HttpsOnly)
    with opener.open(address, timeout=_TIMEOUT_S) as answer, open(target, "wb") as file:
        done = 0
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > _MAX_BYTES:
                raise ValueError(f"sends more than {_MAX_BYTES >> 20} MB")
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != md5:
        raise ValueError(f"sent another file (MD5 {digest.hexdigest()[:12]}, expected {md5[:12]})")
