"""Reading http(s) addresses, with a deadline and a size limit."""

from __future__ import annotations

import base64
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import BinaryIO

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.calls import raise_if_cancelled

_CHUNK = 1 << 16
# Seconds between two looks at a cancel token while the network is waited for.
_POLL = 0.05


class FetchError(Exception):
    """An address could not be read; the message says why."""


def without_login(url: str) -> str:
    """The address as messages may show it: without `user:password@`."""
    shown = re.sub(r"(?<=://)[^/?#]*@", "", url, count=1)
    try:
        _ = urllib.parse.urlsplit(shown).port
    except ValueError:  # a password with a '/' in it ends the host's part early
        shown = re.sub(r"(?<=://).*@", "", shown)
    return shown


def fetch(url: str, out: BinaryIO, limit: int, timeout: float, cancel: CancelToken | None = None) -> None:
    """Writes what `url` (http or https) answers to `out`.

    Blanks and letters beyond ASCII are quoted; a login (`http://user:password@host/`) is sent as basic
    authentication, to that host alone.
    limit: most bytes; timeout: seconds for the whole of it, and for each wait on the network.
    cancel: when it is set, the download is left to itself, and ends when `out` is closed or by its deadline.
    Raises FetchError: refused, an error status, too large, too slow. CancelledError.
    """
    if cancel is None:
        _fetch(url, out, limit, timeout)
        return
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            _fetch(url, out, limit, timeout)
            outcome.put(None)
        except BaseException as error:
            outcome.put(error)

    # Name look-ups and connections cannot be interrupted; a thread that does them can be left.
    try:
        threading.Thread(target=run, name="qwen2vl-fetch", daemon=True).start()
    except RuntimeError as error:
        raise FetchError(f"{error}: it takes one") from None
    while True:
        raise_if_cancelled(cancel)
        try:
            error = outcome.get(timeout=_POLL)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return


def _fetch(url: str, out: BinaryIO, limit: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        with urllib.request.urlopen(_request(url), timeout=timeout) as response:
            length = response.headers.get("Content-Length", "")
            if length.isdecimal() and int(length) > limit:
                raise FetchError(f"it holds {length} bytes; the limit is {limit}")
            received = 0
            # read1 hands over what has come, so that a slow sender meets the deadline.
            while chunk := response.read1(_CHUNK):
                received += len(chunk)
                if received > limit:
                    raise FetchError(f"it holds more than {limit} bytes, the limit")
                if time.monotonic() > deadline:
                    raise FetchError(f"it did not arrive within {timeout:g} seconds")
                out.write(chunk)
            if length.isdecimal() and received < int(length):
                raise FetchError(f"the connection broke off after {received} of {length} bytes")
    except urllib.error.HTTPError as error:
        raise FetchError(f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise FetchError(str(error.reason)) from None
    except TimeoutError:
        raise FetchError(f"no answer within {timeout:g} seconds") from None
    except (OSError, ValueError, EOFError) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from None
    except Exception as error:  # http.client's own family, which URLError does not wrap
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{type(error).__name__}: {error}") from None


def _request(url: str) -> urllib.request.Request:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.netloc.rpartition("@")[2], parts.port
        if not host.isascii():
            port = "" if port is None else f":{port}"
            host = (parts.hostname or "").encode("idna").decode() + port
    except ValueError:  # whose message may hold the password
        raise FetchError("it is no valid address: quote '/', '?', '#' and '@' inside its parts") from None
    # Percent signs stay: what is quoted already is not quoted again.
    path, query = (
        urllib.parse.quote(part, safe="/%:;=&?~+!$,'@()*[]|") for part in (parts.path, parts.query)
    )
    request = urllib.request.Request(
        urllib.parse.urlunsplit((parts.scheme, host, path, query, "")),
        headers={"User-Agent": "qwen2vl_rt", "Accept": "*/*"},
    )
    if parts.username is not None:
        login = ":".join(urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        # Not sent to where the server redirects.
        request.add_unredirected_header(
            "Authorization", "Basic " + base64.b64encode(login.encode()).decode("ascii")
        )
    return request
