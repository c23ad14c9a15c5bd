"""A server process of the session, and cases that do not see each other."""

import itertools
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest


class Service:
    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        self._numbers = itertools.count()

    def case(self, behaviours):
        return Case(self.base, f"case{next(self._numbers)}", behaviours)


class Case:
    """A url whose n-th request is answered by the n-th behaviour."""

    def __init__(self, base, name, behaviours):
        self.base, self.name = base, name
        self.url = f"{base}/{name}/{behaviours}"

    @property
    def stats(self):
        with urllib.request.urlopen(f"{self.base}/stats/{self.name}") as reply:
            return json.load(reply)

    @property
    def requests(self):
        return self.stats["requests"]


@pytest.fixture(scope="session")
def service():
    script = Path(__file__).with_name("misbehaving_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield Service(int(process.stdout.readline()))
    process.stdin.close()
    process.wait(timeout=10)
    process.stdout.close()
