"""Faults of a server of shards or of the way to it: mended by another try, or told with the address and a remedy."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from cropl.data import remote
from cropl.data.manifest import Manifest, ShardError
from cropl.data.shards import ShardReader
from tests.data.https import (
    SHARD,
    Reply,
    Site,
    cached,
    cut,
    cut_without_length,
    hangs_up,
    leads_to,
    send,
    status,
    without_length,
)
from tests.data.https import authority as authority
from tests.data.https import cache as cache
from tests.data.https import serve as serve
from tests.data.https import site as site


def refused(site: Site, index: int = 4) -> str:
    """The error of reading a sample (by default of the second shard)."""
    with pytest.raises(ShardError) as caught:
        ShardReader(site.url)[index]
    message = str(caught.value)
    assert site.url in message and "\n" not in message
    return message


@pytest.mark.parametrize("file", ["manifest.json", SHARD])
@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_that_is_busy_is_asked_again(site: Site, file: str, code: int) -> None:
    site.replies[file] = [status(code), status(code)]
    assert ShardReader(site.url)[4].key == "s0004" and site.requests[file] == 3


def test_waits_grow_and_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "DELAYS_S", (1.0, 2.0, 4.0))
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    site.replies[SHARD] = [status(503)] * 4
    message = refused(site)
    assert SHARD in message and "status 503" in message and "4 tries" in message and "local folder" in message
    assert waits == [1.0, 2.0, 4.0] and site.requests[SHARD] == 4


@pytest.mark.parametrize("file", ["manifest.json", SHARD])
@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_other_answers_are_errors_at_once(site: Site, cache: Path, file: str, code: int) -> None:
    site.replies[file] = [status(code)]
    message = refused(site)
    assert file in message and f"status {code}" in message and "check the address" in message
    assert site.requests[file] == 1 and cached(cache) == []


def test_a_folder_without_manifest(serve: Callable[[Path], Site], tmp_path: Path) -> None:
    assert "manifest.json: the server answers with status 404" in refused(serve(tmp_path))


@pytest.mark.parametrize("fault", [hangs_up, cut, cut_without_length])
def test_a_broken_download_is_begun_again(site: Site, cache: Path, fault: Reply) -> None:
    site.replies[SHARD] = [fault, fault]
    assert ShardReader(site.url)[4].key == "s0004" and site.requests[SHARD] == 3
    shutil.rmtree(cache)
    site.replies[SHARD] = [fault] * 4
    message = refused(site)
    assert SHARD in message and "tries" in message and cached(cache) == []


def test_a_broken_manifest_is_fetched_again(site: Site) -> None:
    site.replies["manifest.json"] = [cut, hangs_up]
    assert len(ShardReader(site.url)) == 10


def test_a_server_that_falls_silent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(remote, "DELAYS_S", (0.0,))
    site.replies[SHARD] = [lambda handler, body: time.sleep(1)] * 2
    assert "timed out" in refused(site)


def test_other_bytes_are_never_kept(site: Site, cache: Path) -> None:
    whole = (site.folder / SHARD).read_bytes()
    site.replies[SHARD] = [lambda handler, body: send(handler, bytes([body[0] ^ 1]) + body[1:])]
    message = refused(site)
    assert SHARD in message and "SHA-256" in message and cached(cache) == []
    assert site.requests[SHARD] == 1  # the fault will not go away
    for body in (b"<html>an error page</html>", whole + b"x", whole[:-1]):
        site.replies[SHARD] = [lambda handler, _, body=body: send(handler, body)]  # type: ignore[misc]
        assert f"sends {len(body)} bytes, and {len(whole)} are right" in refused(site) and cached(cache) == []
    site.replies[SHARD] = [without_length(whole + bytes(1 << 22))]
    assert f"sends more bytes, and {len(whole)} are right" in refused(site) and cached(cache) == []


def test_a_page_instead_of_a_manifest(site: Site) -> None:
    site.replies["manifest.json"] = [lambda handler, body: send(handler, b"<html>Welcome</html>")]
    assert "manifest.json: not a manifest" in refused(site)


@pytest.mark.parametrize("reply", [lambda handler, body: send(handler, body), without_length(b"[" * 5000)])
def test_a_manifest_without_end(site: Site, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 1000)
    site.replies["manifest.json"] = [reply]
    assert "1000 are the limit" in refused(site)


@pytest.mark.parametrize("field", ["sha256", "bytes"])
def test_a_manifest_cannot_lead_out_of_the_cache_or_fill_the_disk(site: Site, cache: Path, field: str) -> None:
    manifest = Manifest.read(site.folder)
    changed: Any = {"sha256": "../../stolen", "bytes": 1 << 50}[field]
    for shard in manifest.shards:
        object.__setattr__(shard, field, changed)
    manifest.write(site.folder)
    message = refused(site)
    assert "manifest.json" in message and ("SHA-256" in message or "limit" in message)
    assert site.requests == {"manifest.json": 1} and not cache.exists()


def test_redirects_keep_to_https(site: Site, serve: Callable[[Path], Site]) -> None:
    other = serve(site.folder)
    site.replies[SHARD] = [leads_to(other.url + SHARD)]
    assert ShardReader(site.url)[4].key == "s0004" and other.requests[SHARD] == 1
    for location in ("http://localhost/x.tar", "file:///etc/passwd", "ftp://localhost/x", "data:,x", site.url):
        site.replies["manifest.json"] = [leads_to(location)] * 20
        if location == site.url:
            site.replies[""] = [leads_to(location)] * 20
        message = refused(site)
        assert "manifest.json: the server answers with status 302" in message and "https" in message


def test_an_authority_that_is_not_trusted(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    message = refused(site)
    assert "certificate is not trusted" in message and "SSL_CERT_FILE" in message and not site.requests
