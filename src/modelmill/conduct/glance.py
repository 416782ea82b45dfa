"""Look at a store for a moment: names for a shell that completes one, at once or not at all.

Nothing is started, nothing is waited for, and nothing is said when it does not work.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from modelmill.spec.names import Kind
from modelmill.spec.plan import Plan
from modelmill.store.address import open_store
from modelmill.store.artifact import list_artifacts
from modelmill.store.embedded import EmbeddedStore, running_environment
from modelmill.store.runs import get_plan, list_runs, read_run
from modelmill.store.s3 import Store

T = TypeVar("T")

PATIENCE_SECONDS: Final = 2.0
"""Whoever pressed Tab is waiting."""

REPORT: Final = "report"


@dataclass(frozen=True)
class Glance:
    """A store that may be there."""

    home: Path
    url: str | None
    """`s3://bucket/prefix`; None for the embedded one, if it runs already."""
    patience_seconds: float = PATIENCE_SECONDS

    def runs(self) -> tuple[str, ...]:
        """Name every run."""
        return self._look(list_runs)

    def stages(self, run: str) -> tuple[str, ...]:
        """Name every stage of a run."""
        return self._look(lambda store: _stages(store, run))

    def models(self, run: str) -> tuple[str, ...]:
        """Name every model that a run makes."""
        return self._look(lambda store: _models(store, run))

    def artifacts(self) -> tuple[tuple[Kind, str], ...]:
        """Name kind and key of everything that is committed."""
        return self._look(list_artifacts)

    def _look(self, names: Callable[[Store], Iterable[T]]) -> tuple[T, ...]:
        found: list[tuple[T, ...]] = []

        def ask() -> None:
            # A refusal, an unknown host and a document of a newer version are all the same here.
            with suppress(Exception):
                store = self._open()
                if store is not None:
                    found.append(tuple(names(store)))

        # A daemon: what does not answer must not keep the process.
        asking = Thread(target=ask, daemon=True)
        asking.start()
        asking.join(self.patience_seconds)
        return found[0] if found else ()

    def _open(self) -> Store | None:
        if self.url is not None:
            return open_store(self.url, retry_budget_seconds=0)
        environment = running_environment(self.home / "store")
        if environment is None:
            return None
        # This process ends as soon as it has answered.
        os.environ.update(environment)
        return open_store(EmbeddedStore.url, retry_budget_seconds=0)


def _stages(store: Store, run: str) -> tuple[str, ...]:
    record = read_run(store, run)
    return () if record is None else (*record.keys, REPORT)


def _models(store: Store, run: str) -> tuple[str, ...]:
    record = read_run(store, run)
    if record is None or not record.plan_sha256:
        return ()
    plan = Plan.model_validate_json(get_plan(store, run, record.plan_sha256))
    return tuple(plan.made())
