"""Remove an artifact and everything that was made from it, unless a run still needs it.

What would go is found out first and shown; removing is a second call.  Knows manifests, runs
and who is at work; knows nothing about how it is asked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from modelmill.conduct.clock import is_young
from modelmill.conduct.lookup import find_artifact
from modelmill.spec.errors import WouldBeLost
from modelmill.spec.names import Kind, artifact_prefix
from modelmill.spec.records import Record, RunRecord
from modelmill.store.artifact import Committed, list_artifacts, list_attempts, read_manifest
from modelmill.store.checkpoint import drop_checkpoints, read_live
from modelmill.store.crew import THREADS
from modelmill.store.removal import remove_artifact, restore, withdraw
from modelmill.store.runs import list_runs, read_run
from modelmill.store.s3 import Store

Name = tuple[Kind, str]


class RemovalRow(Record):
    """One artifact that goes."""

    kind: Kind
    key: str
    stage: str
    run: str
    """The run that made it."""
    used_in: tuple[str, ...]
    """Every run whose present plan has its key."""
    files: int
    size_bytes: int


class Need(Record):
    """Why artifacts cannot go now."""

    run: str
    stages: tuple[str, ...]
    """Of the run, whose artifacts would go."""
    reason: str


class Removal(Record):
    """What goes, in the order in which it goes, and who is in the way."""

    artifacts: tuple[RemovalRow, ...]
    """What was made from others comes first, so that what is left is sound at any moment."""
    needed_by: tuple[Need, ...]
    is_done: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as they were committed."""
        return sum(row.size_bytes for row in self.artifacts)


def plan_removal(store: Store, beginning: str) -> Removal:
    """Find out what goes with the artifact whose key begins like this; nothing is changed.

    Raises:
        InputMissing: none, or more than one, begins like that.
    """
    manifests = manifests_of(store)
    doomed = made_from(manifests, find_artifact(store, beginning))
    runs = _using(store, doomed)
    return Removal(
        artifacts=tuple(_row(committed, runs) for committed in doomed),
        needed_by=_needed_by(store, runs, doomed, manifests),
    )


def remove_artifacts(store: Store, removal: Removal) -> Removal:
    """Remove what was planned: first every manifest, so that readers see it gone, then the data.

    Interrupted, `gc` finishes it.  A run writes down what it needs before it looks for it, and
    here is looked for runs once more when all is withdrawn: either the run sees that it has to
    compute, or everything comes back.

    Raises:
        WouldBeLost: a run without an end or a live attempt needs some of it; nothing is removed.
    """
    _refuse(store, removal.needed_by)
    manifests = manifests_of(store)
    names = [(row.kind, row.key) for row in removal.artifacts]
    doomed = [manifests[name] for name in names if name in manifests]
    for kind, key in names:
        withdraw(store, artifact_prefix(kind, key))
    late = _needed_by(store, _using(store, doomed), doomed, manifests)
    if late:
        for kind, key in reversed(names):
            restore(store, kind, key)
        _refuse(store, late)
    for kind, key in names:
        remove_artifact(store, kind, key, list_attempts(store, kind, key))
        drop_checkpoints(store, key)
    return removal.model_copy(update={"is_done": True})


def _refuse(store: Store, needed_by: Sequence[Need]) -> None:
    if needed_by:
        runs = [need.run for need in needed_by]
        raise WouldBeLost(
            "\n".join(f"Run '{each.run}' {each.reason}" for each in needed_by),
            at=store.url,
            fix=" or ".join(f"modelmill {verb} {runs[0]}" for verb in ("wait", "cancel", "rm"))
            + ", then the same command",
        )


def made_from(manifests: Mapping[Name, Committed], root: Committed) -> tuple[Committed, ...]:
    """List an artifact and all that was made from it, each before what it was made from."""
    children: dict[Name, list[Committed]] = {}
    for committed in manifests.values():
        for given in committed.manifest.inputs.values():
            children.setdefault((given.kind, given.key), []).append(committed)
    ordered: dict[Name, Committed] = {}

    def visit(committed: Committed) -> None:
        name = _name(committed)
        if name not in ordered:
            for child in children.get(name, ()):
                visit(child)
            ordered[name] = committed

    visit(root)
    return tuple(ordered.values())


def manifests_of(store: Store) -> Mapping[Name, Committed]:
    """Read the manifest of everything that is committed."""
    names = tuple(list_artifacts(store))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: read_manifest(store, *name), names)
        return {_name(committed): committed for committed in found if committed is not None}


def records_of(store: Store) -> Iterator[RunRecord]:
    """Read the record of every run."""
    for run in list_runs(store):
        record = read_run(store, run)
        if record is not None:
            yield record


def _row(committed: Committed, runs: Sequence[RunRecord]) -> RemovalRow:
    manifest = committed.manifest
    return RemovalRow(
        kind=manifest.kind,
        key=manifest.key,
        stage=manifest.stage,
        run=manifest.run,
        used_in=tuple(run.name for run in runs if manifest.key in run.keys.values()),
        files=len(manifest.files),
        size_bytes=sum(file.size_bytes for file in manifest.files),
    )


def _using(store: Store, doomed: Sequence[Committed]) -> tuple[RunRecord, ...]:
    keys = {committed.manifest.key for committed in doomed}
    return tuple(each for each in records_of(store) if keys & set(each.keys.values()))


def _needed_by(
    store: Store,
    runs: Sequence[RunRecord],
    doomed: Sequence[Committed],
    manifests: Mapping[Name, Committed],
) -> tuple[Need, ...]:
    """Say who is in the way.

    Args:
        store: where they are.
        runs: those that use some of what would go.
        doomed: what would go.
        manifests: of everything.  Who has committed is over, although its last sign of life
            may be young.
    """
    keys = {committed.manifest.key for committed in doomed}
    over = {committed.manifest.attempt for committed in manifests.values()}
    live = {
        key: run
        for key in sorted(keys.union(*(run.keys.values() for run in runs)))
        if (run := _at_work(store, key, over))
    }
    return tuple(_needs(runs, keys, live))


def _needs(
    runs: Sequence[RunRecord], keys: Collection[str], live: Mapping[str, str]
) -> Iterator[Need]:
    """Say which runs are in the way.

    Args:
        runs: those that use some of the keys.
        keys: of what would go.
        live: who works on which key, of these and of other stages of these runs, which may be
            reading what would go.
    """
    for run in runs:
        stages = tuple(stage for stage, key in run.keys.items() if key in keys)
        at_work = [stage for stage, key in run.keys.items() if key in live]
        if at_work:
            reason = f"is at work on {', '.join(at_work)}"
        elif run.exit_code is None:
            reason = f"has no end yet and needs {', '.join(stages)}"
        else:
            continue
        yield Need(run=run.name, stages=stages, reason=reason)
    planned = {key for run in runs for key in run.keys.values()}
    for key, name in live.items():
        if key not in planned:
            # Of a plan that its run has left behind.
            yield Need(run=name, stages=(), reason=f"is at work on {key}")


def _at_work(store: Store, key: str, over: Collection[str]) -> str:
    """Name the run that works on a key right now; empty if none does."""
    live = read_live(store, key)
    if live is None or live.attempt in over or not is_young(live.time):
        return ""
    return live.run


def _name(committed: Committed) -> Name:
    return committed.manifest.kind, committed.manifest.key
