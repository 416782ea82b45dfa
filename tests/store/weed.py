"""A SeaweedFS that a test may kill, start again, and give more identities than one."""

import json
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from modelmill.store import embedded

START_SECONDS = 60.0
"""Far more than it takes; only a failure waits this long."""


class Weed:
    """One server process, nobody's but the test's.

    Attributes:
        environment: the AWS SDK's variables that make it reach this server.
    """

    def __init__(self, folder: Path, others: Mapping[str, Sequence[str]] | None = None) -> None:
        """Choose ports and credentials; the first start comes with the context.

        Args:
            folder: where its data is.
            others: actions by the access key, and secret key, of further identities.
        """
        server = embedded.Server((), secrets.token_hex(16), secrets.token_hex(32))
        self._server = replace(server, ports=embedded._free_ports(()))
        self._folder = folder
        self._others = others or {}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"s3://{embedded.BUCKET}"
        self.environment = embedded._environment(self._server)

    def __enter__(self) -> Self:
        """Start it for the first time."""
        identities = json.loads(embedded._identities(self._server))
        identities["identities"] += [
            {
                "name": key,
                "credentials": [{"accessKey": key, "secretKey": key}],
                "actions": list(actions),
            }
            for key, actions in self._others.items()
        ]
        (self._folder / "identities.json").write_text(json.dumps(identities), encoding="utf-8")
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave nothing running."""
        self.kill()

    def start(self) -> None:
        """Start it, again at the same ports, and wait until it serves."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [embedded._weed(), *embedded._arguments(self._folder, self._server)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        client = embedded._client(self._server)
        deadline = time.monotonic() + START_SECONDS
        while not (embedded._listens(self._server) and embedded._serves(client)):
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(embedded.POLL_SECONDS)

    def kill(self) -> None:
        """Let it die without a chance to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
