"""A small Swift client over http.client: one connection per thread, and answers taken as they are.

Invariant: it never retries, so what it reports as acknowledged was acknowledged by that very answer.
"""

import hashlib
import http.client
import json
import select
import threading
import urllib.parse

TIMEOUT = 60.0
PAGE = 1000


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def number(self, name):
        value = self.headers.get(name)
        assert value is not None and value.isdigit(), f"header {name} is {value!r}, wanted a number"
        return int(value)

    def etag(self):
        return (self.headers.get("etag") or "").strip('"')


class Account:
    """An authenticated account. Build a new one after every restart of the node."""

    def __init__(self, env):
        url = urllib.parse.urlsplit(env["ST_AUTH"])
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT)
        connection.request("GET", url.path, headers={"X-Auth-User": env["ST_USER"], "X-Auth-Key": env["ST_KEY"]})
        response = connection.getresponse()
        response.read()
        assert response.status in (200, 204), f"v1 authentication answered {response.status}"
        storage = urllib.parse.urlsplit(response.headers["X-Storage-Url"])
        self.token = response.headers["X-Auth-Token"]
        self.host, self.port, self.prefix = storage.hostname, storage.port, storage.path.rstrip("/")
        connection.close()
        self._local = threading.local()

    def let_go_if_closed(self):
        """Whether a connection is kept; one that the server has ended meanwhile is not."""
        connection = getattr(self._local, "connection", None)
        if connection is None or connection.sock is None:
            return False
        if select.select([connection.sock], [], [], 0)[0]:
            connection.close()
            return False
        return True

    def request(self, method, path="", body=None, headers=None, query=None):
        """One request. `path` is `container/object`, unquoted. Raises OSError or HTTPException when the answer breaks off."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
            self._local.connection = connection
        target = self.prefix + ("/" + urllib.parse.quote(path) if path else "")
        if query:
            target += "?" + urllib.parse.urlencode(query)
        try:
            connection.request(method, target, body=body, headers={"X-Auth-Token": self.token, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException):
            connection.close()
            self._local.connection = None
            raise

    def expect(self, statuses, method, path="", **options):
        answer = self.request(method, path, **options)
        wanted = statuses if isinstance(statuses, tuple) else (statuses,)
        assert answer.status in wanted, f"{method} {path!r} answered {answer.status}, wanted {wanted}: {answer.body[:300]!r}"
        return answer

    def listing(self, container=""):
        """All rows of a container, or of the account, page by page, and in strictly rising order."""
        rows, marker = [], ""
        while True:
            query = {"format": "json", "limit": PAGE, "marker": marker}
            answer = self.expect((200, 204), "GET", container, query=query)
            page = json.loads(answer.body) if answer.status == 200 else []
            for row in page:
                name = row["name"]
                assert name.encode() > marker.encode(), f"listing of {container!r} is out of order at {name!r}"
                marker = name
            rows += page
            if len(page) < PAGE:
                return rows


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
