"""Shards over https: fetched once, checked, kept; secrets are not told, and nothing else is an address."""

import hashlib
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cropl.data import remote
from cropl.data.manifest import Manifest, ShardError
from cropl.data.remote import RemoteFolder, open_remote, without_secrets
from cropl.data.shards import LocalFolder, ShardReader, open_folder
from tests.data.https import SHARD, Site, Write, cached, send, status
from tests.data.https import authority as authority
from tests.data.https import cache as cache
from tests.data.https import serve as serve
from tests.data.https import site as site


def test_samples_are_those_of_the_folder(site: Site, cache: Path) -> None:
    there, here = ShardReader(site.url), ShardReader(site.folder)
    assert there.fingerprint == here.fingerprint and len(there) == 10
    assert site.requests == {"manifest.json": 1} and not cache.exists()  # nothing is fetched before it is needed
    assert [there[i].to_json() for i in range(10)] == [here[i].to_json() for i in range(10)]
    image = there[7].image
    assert isinstance(image, Image.Image) and image.getpixel((0, 0)) == (7, 7, 7)
    assert cached(cache) == sorted(f"{shard.sha256}.tar" for shard in Manifest.read(site.folder).shards)


def test_every_shard_is_fetched_once(site: Site) -> None:
    reader = ShardReader(site.url)
    for copy in (reader, pickle.loads(pickle.dumps(reader)), ShardReader(site.url.rstrip("/"))):
        assert [copy.key(i) for i in range(10)] == [copy[i].key for i in range(10)]
    assert site.requests == {"manifest.json": 2} | {f"samples-00000{i}.tar": 1 for i in range(3)}


def test_worker_processes_share_a_download(site: Site) -> None:
    def slow(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        time.sleep(0.5)  # long enough for the others to ask
        send(handler, body)

    site.replies = {f"samples-00000{i}.tar": [slow] for i in range(3)}
    reader = ShardReader(site.url)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        samples = pool.map(reader.__getitem__, [0, 1, 4, 5, 8, 9, 2, 3], chunksize=1)
    assert [sample.key for sample in samples] == [f"s000{i}" for i in (0, 1, 4, 5, 8, 9, 2, 3)]
    assert site.requests == {"manifest.json": 1} | {f"samples-00000{i}.tar": 1 for i in range(3)}


def test_threads_share_a_download(site: Site) -> None:
    readers = [ShardReader(site.url) for _ in range(4)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda reader=reader: found.append(reader[4].key)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["s0004"] * 4 and site.requests[SHARD] == 1


def test_equal_names_are_not_mixed_up(serve: Callable[[Path], Site], write_shards: Write, cache: Path) -> None:
    one, two = serve(write_shards(name="one")), serve(write_shards(count=9, per_shard=3, name="two"))
    assert [ShardReader(site.url)[4].key for site in (one, two, one)] == ["s0004"] * 3
    assert one.requests[SHARD] == two.requests[SHARD] == 1 and len(cached(cache)) == 2
    with pytest.raises(ShardError, match=f"{one.url} and {two.url} share sample keys"):
        ShardReader([f"{one.url}?sig=hunter2", two.url])


def test_the_cache_serves_without_the_server(site: Site) -> None:
    first = ShardReader(site.url)
    keys = [first[i].key for i in range(10)]
    fresh = pickle.loads(pickle.dumps(first))
    site.stop()
    assert [fresh[i].key for i in range(10)] == keys
    with pytest.raises(ShardError, match=r"connection fails.*4 tries"):
        ShardReader(site.url)


@pytest.mark.parametrize("verify", ["off", "size", "once", "full"])
def test_a_damaged_copy_is_fetched_again(site: Site, cache: Path, verify: Any) -> None:
    shard = Manifest.read(site.folder).shards[1]
    copy = cache / f"{shard.sha256}.tar"
    assert ShardReader(site.url, verify)[4].key == "s0004"
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    assert ShardReader(site.url, verify)[4].key == "s0004" and copy.read_bytes() == whole
    copy.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(copy, ns=(1, 1))  # as of another time, however coarse the clock of the disk is
    assert ShardReader(site.url, verify)[4].key == "s0004"
    hashed = verify in ("once", "full")
    assert (copy.read_bytes() == whole) is hashed and site.requests[SHARD] == 2 + hashed


def test_once_hashes_a_copy_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def noted(path: Path) -> str:
        hashed.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(remote, "sha256_of", noted)
    for _ in range(2):  # the download was hashed on its way
        assert ShardReader(site.url, "once")[4].key == "s0004" and not hashed
    (stamp,) = (Path(os.environ["CROPL_CACHE"]) / "verified").iterdir()
    stamp.unlink()
    for _ in range(2):
        assert ShardReader(site.url, "once")[4].key == "s0004" and len(hashed) == 1
    assert ShardReader(site.url, "full")[4].key == "s0004" and len(hashed) == 2
    assert site.requests[SHARD] == 1


def test_remains_of_a_killed_download_do_no_harm(site: Site, cache: Path) -> None:
    shard = Manifest.read(site.folder).shards[1]
    cache.mkdir(parents=True)
    (cache / f"{shard.sha256}.part").write_bytes(bytes(1 << 20))
    (cache / f"{shard.sha256}.lock").touch()
    assert ShardReader(site.url)[4].key == "s0004" and cached(cache) == [f"{shard.sha256}.tar"]


def test_a_download_is_durable_before_it_has_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*arguments: Any) -> None:
            done.append(name)
            real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    assert ShardReader(site.url)[4].key == "s0004"
    # The last one is the stamp's, which is remade if it is lost.
    assert done == ["fsync", "replace", "fsync", "replace"]


def test_where_the_cache_is(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ShardReader(site.url, cache=tmp_path / "given")
    assert reader[4].key == "s0004" and len(cached(tmp_path / "given")) == 1
    monkeypatch.delenv("CROPL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder, manifest = open_remote(site.url)
    assert folder.cache == tmp_path / "home" / ".cache" / "cropl" / "shards"
    path = folder.path(manifest.shards[0])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest.shards[0].sha256 == path.stem


def test_a_cache_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"file/cache: shards cannot be kept there.*CROPL_CACHE"):
        ShardReader(site.url, cache=tmp_path / "file" / "cache")[4]


def test_secrets_are_sent_and_never_told(site: Site, cache: Path) -> None:
    secret = f"{site.url}?sig=hunter2&b=1"
    reader = ShardReader(secret)
    assert reader[4].key == "s0004" and site.queries == {"sig=hunter2&b=1"}
    assert "hunter2" not in repr(reader._shards)
    site.replies["samples-000000.tar"] = [status(403)]
    messages = []
    for read in (
        lambda: reader[0],
        lambda: ShardReader(site.url.replace("https://", "https://me:hunter2@")),
        lambda: ShardReader(f"{site.url}nothing/?sig=hunter2"),
        lambda: ShardReader(f"{site.url}#hunter2"),
        lambda: ShardReader("s3://key:hunter2@bucket/x?token=hunter2"),
        lambda: ShardReader("https://[::1/?hunter2"),
    ):
        with pytest.raises(ShardError) as caught:
            read()
        messages.append(str(caught.value))
    assert not [message for message in messages if "hunter2" in message]
    assert "status 403" in messages[0] and "user names and passwords" in messages[1]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("pipe:cat /etc/passwd", "never run"),
        ("PIPE:cat /etc/passwd", "never run"),
        ("http://host/shards", "use https"),
        ("file:///tmp", "give the path alone"),
        ("hf://a/b", "download it first"),
        ("gs://a/b", "download it first"),
        ("s3://a/b", "download it first"),
        ("ftp://a/b", "download it first"),
        ("https:/host/shards", "https://host/folder/"),
        ("https://", "https://host/folder/"),
        ("https://host:port/", "https://host/folder/"),
        ("https://[::1/", "https://host/folder/"),
        ("https://localhost/#x", "https://host/folder/"),
        ("https://shards.invalid/", "no such host"),
        ("https://a..b/", "no address"),
    ],
)
def test_other_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, address: str, says: str) -> None:
    def starts(*command: object, **options: object) -> None:
        raise AssertionError(f"a process is started: {command}")

    def no_such_host(*_: object, **__: object) -> None:
        raise remote.socket.gaierror(remote.socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("subprocess.Popen", starts)
    monkeypatch.setattr("os.system", starts)
    if "invalid" in address:
        monkeypatch.setattr("socket.getaddrinfo", no_such_host)
    with pytest.raises(ShardError, match=says):
        ShardReader(address)


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b", "a b", "a:b", "pipe:cat x", "s3:x", "é", "https:"])
def test_a_local_folder_may_be_called_anything(
    write_shards: Write, monkeypatch: Any, tmp_path: Path, name: str
) -> None:
    folder = write_shards(name=name)
    assert ShardReader(folder)[4].key == "s0004"
    monkeypatch.chdir(tmp_path)
    opened, manifest = open_folder(name)
    assert opened == LocalFolder(Path(name)) and opened.path(manifest.shards[0]).is_file()


def test_verify_is_checked(site: Site) -> None:
    with pytest.raises(ShardError, match="verify 'all': must be one of off, size, once, full"):
        open_folder(site.url, "all")  # type: ignore[arg-type]
    assert not site.requests


def test_paths_that_need_escapes(serve: Callable[[Path], Site], write_shards: Write, tmp_path: Path) -> None:
    site = serve(tmp_path)
    write_shards(name="a%20é")  # the server does not unescape: the folder is called as the address is sent
    (tmp_path / "a%20é").rename(tmp_path / "a%20%C3%A9")
    for path in ("a é", "a%20é", "a%20%C3%A9"):
        assert isinstance(open_folder(f"{site.url}{path}")[0], RemoteFolder)
    assert without_secrets("https://me:pw@host/a/b?c=d#e") == "https://host/a/b"
