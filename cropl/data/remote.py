"""Shards at an `https` address: fetched when they are first needed, into a cache that is checked.

The cache goes by content: a shard is kept under its SHA-256 from the manifest, so data sets cannot be mixed up and what
is there once is never fetched again. A download is hashed, flushed to disk and renamed, under a lock, so that any
number of processes share one. Nothing but `https` is spoken, also after a redirect; certificates are checked against
the system's authorities or those that `SSL_CERT_FILE` names.
"""

import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage, InvalidURL
from pathlib import Path
from typing import IO, Any, TypeVar, get_args
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from filelock import FileLock

from cropl import __version__
from cropl.data.files import sha256_of, sync_folder
from cropl.data.manifest import NAME, Manifest, Shard, ShardError, Verify
from cropl.data.stamp import cache_folder, is_stamped, put_stamp

T = TypeVar("T")

MAX_MANIFEST_BYTES = 1 << 29
MAX_SHARD_BYTES = 1 << 34
TIMEOUT_S = 30.0
DELAYS_S = (1.0, 2.0, 4.0, 8.0)
"""Waits before the second and each further try."""

_ITSELF = ("",)
"""A cached shard has a stamp of its own: it is what the stamp calls a folder, and the one file in it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "check the address, or download the shards and give the local folder"


@dataclass
class RemoteFolder:
    """Shards at an `https` address, each a local file once it is asked for. Travels to worker processes.

    Attributes:
        url: of the folder, with a slash at its end and without its query, which may hold a secret.
        query: sent with every request and never told; "" for none.
        cache: the folder where shards are kept.
        verify: what is done with a shard that the cache holds already, when a process first uses it: `full` hashes it,
            `once` does so unless it was found sound before and has not been touched since, `size` and `off` compare its
            size. What is downloaded is always hashed.
    """

    url: str
    query: str = field(repr=False)
    cache: Path
    verify: Verify = "size"
    _seen: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": set()}  # another process looks for itself

    def path(self, shard: Shard) -> Path:
        """The shard's file in the cache, fetched where it is missing or damaged; called in any process.

        Raises:
            ShardError: it cannot be fetched, is not what the manifest says, or cannot be kept.
        """
        path = self.cache / f"{shard.sha256}.tar"
        if shard.sha256 in self._seen:
            return path
        try:
            if not self._is_whole(path, shard):
                self.cache.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock")):
                    if not self._is_whole(path, shard):  # another process may have fetched it meanwhile
                        self._fetch(shard, path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            fault = f"shards cannot be kept there ({reason}); set CROPL_CACHE to a folder with room"
            raise ShardError(f"{self.cache}: {fault}") from None
        self._seen.add(shard.sha256)
        return path

    def manifest(self) -> Manifest:
        """Fetch and check the manifest.

        Raises:
            ShardError: it cannot be fetched, or as for `Manifest.parse`.
        """
        shown = self.url + NAME
        text = _retried(lambda: b"".join(self._blocks(NAME, MAX_MANIFEST_BYTES, exact=False)), shown)
        manifest = Manifest.parse(text, shown)
        for shard in manifest.shards:
            if not isinstance(shard.sha256, str) or not _SHA256.fullmatch(shard.sha256):
                raise ShardError(f"{shown}: {shard.file} has no SHA-256; the manifest is damaged")
            if type(shard.bytes) is not int or not 0 <= shard.bytes <= MAX_SHARD_BYTES:
                raise ShardError(f"{shown}: {shard.file} claims {shard.bytes} bytes, the limit is {MAX_SHARD_BYTES}")
        return manifest

    def _is_whole(self, path: Path, shard: Shard) -> bool:
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return False
        if self.verify in ("off", "size") or (self.verify == "once" and is_stamped(path, shard.sha256, _ITSELF)):
            return True
        if sha256_of(path) != shard.sha256:
            return False
        put_stamp(path, shard.sha256, _ITSELF)
        return True

    def _fetch(self, shard: Shard, path: Path) -> None:
        part = path.with_suffix(".part")
        try:
            digest = _retried(lambda: self._save(shard, part), self.url + shard.file)
            if digest != shard.sha256:
                raise ShardError(
                    f"{self.url}{shard.file}: its SHA-256 differs from the manifest's; it was changed or damaged where "
                    "it is; restore it or build the shards again"
                )
            os.replace(part, path)
            sync_folder(path.parent)
            put_stamp(path, shard.sha256, _ITSELF)
        finally:
            part.unlink(missing_ok=True)

    def _save(self, shard: Shard, part: Path) -> str:
        """One try to write the shard to `part`; its SHA-256."""
        digest, size = hashlib.sha256(), 0
        with open(part, "wb") as file:
            for block in self._blocks(shard.file, shard.bytes, exact=True):
                digest.update(block)
                size += len(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if size < shard.bytes:
            raise _Passing(f"the download ends after {size} of {shard.bytes} bytes")
        return digest.hexdigest()

    def _blocks(self, file: str, limit: int, exact: bool) -> Iterator[bytes]:
        """The content of a file of the folder; not `exact`: at most `limit` bytes."""
        query = f"?{self.query}" if self.query else ""
        return _blocks(f"{self.url}{file}{query}", self.url + file, limit, exact)


def open_remote(
    address: str, verify: Verify = "size", cache: str | Path | None = None
) -> tuple[RemoteFolder, Manifest]:
    """The folder of shards at an `https` address, and its manifest.

    Args:
        address: `https://host/folder/`; a query is sent with each request, a user name or password is refused.
        verify: see `RemoteFolder`; only the manifest is fetched and checked now, a shard is at first use.
        cache: folder to keep shards in; None is the folder `shards` of `cropl.data.stamp.cache_folder`.

    Raises:
        ShardError: the address is no such address; the manifest cannot be fetched or used; an unknown `verify`.
    """
    if verify not in get_args(Verify):
        raise ShardError(f"verify {verify!r}: must be one of {', '.join(get_args(Verify))}")
    try:
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ShardError(f"{without_secrets(address)}: not an address; write https://host/folder/") from None
    url = f"https://{host}{quote(parts.path.rstrip('/'), safe='/%:@!$&()*+,;=~-._')}/"
    if "@" in parts.netloc:
        raise ShardError(f"{url}: user names and passwords in an address are not accepted; they would end up in logs")
    if not usable or parts.scheme != "https" or parts.fragment:
        raise ShardError(f"{url}: not an address; write https://host/folder/")
    place = cache or cache_folder() / "shards"
    folder = RemoteFolder(url, parts.query, Path(place).expanduser().absolute(), verify)
    return folder, folder.manifest()


def without_secrets(address: str) -> str:
    """What may be told of an address: no user name, no password, no query."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", address)[0])


class _Passing(Exception):
    """A fault that may be gone at the next try."""


class _HttpsOnly(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not newurl.lower().startswith("https://"):
            raise HTTPError(req.full_url, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _retried(attempt: Callable[[], T], shown: str) -> T:
    """What `attempt` returns, after several tries if it must be."""
    for delay in DELAYS_S:
        try:
            return attempt()
        except _Passing:
            time.sleep(delay)
    try:
        return attempt()
    except _Passing as error:
        raise ShardError(f"{shown}: {error}, at the last of {len(DELAYS_S) + 1} tries; {_REMEDY}") from None


def _blocks(url: str, shown: str, limit: int, exact: bool) -> Iterator[bytes]:
    """The body of a reply, one try; errors call it `shown`.

    Raises:
        _Passing: a server or connection that fails, or a body that ends early.
        ShardError: any other fault; a body of more than `limit` bytes, or if `exact` of another size.
    """
    opener = build_opener(HTTPSHandler(context=ssl.create_default_context()), _HttpsOnly())
    got = 0

    def wrong_size(size: int | str) -> ShardError:
        return ShardError(
            f"{shown}: the server sends {size} bytes, and {limit} are {'right' if exact else 'the limit'}; {_REMEDY}"
        )

    try:
        with opener.open(Request(url, headers={"User-Agent": f"cropl/{__version__}"}), timeout=TIMEOUT_S) as reply:
            said = int(reply.headers.get("Content-Length", -1))
            if said > limit or (exact and -1 < said < limit):
                raise wrong_size(said)
            while block := reply.read(1 << 20):
                got += len(block)
                if got > limit:
                    raise wrong_size("more")
                yield block
    except ShardError:
        raise
    except HTTPError as error:
        error.close()
        fault = f"the server answers with status {error.code}"
        if error.code >= 500 or error.code in (408, 429):
            raise _Passing(fault) from None
        if 300 <= error.code < 400:
            fault += ", which leads to an address that is not https, or in circles"
        raise ShardError(f"{shown}: {fault}; {_REMEDY}") from None
    except (InvalidURL, UnicodeError):
        raise ShardError(f"{shown}: this or where it leads is no address; {_REMEDY}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            fault = f"its certificate is not trusted ({reason.verify_message}); SSL_CERT_FILE can name its authority"
            raise ShardError(f"{shown}: {fault}") from None
        if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
            raise ShardError(f"{shown}: there is no such host; {_REMEDY}") from None
        told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise _Passing(f"the connection fails ({told.lower()})") from None
    if got < said:
        raise _Passing(f"the download ends after {got} of {said} bytes")
