"""Look at everything a run needs of a store: rights, promises, clock and speed."""

from collections.abc import Callable, Iterator
from typing import Final

from modelmill.conduct.finding import Finding, State, checked, failed
from modelmill.conduct.place import opened_as_pods_see_it
from modelmill.spec.errors import ModelmillError
from modelmill.spec.profile import Profile
from modelmill.store import trial
from modelmill.store.probe import check_conditional_writes
from modelmill.store.s3 import Store

NOTICED_SECONDS: Final = 60.0
REFUSED_SECONDS: Final = 900.0
"""S3 refuses requests that were signed by a clock so far off."""
MEGA: Final = 1_000_000


def examine_store(store: Store) -> Iterator[Finding]:
    """Run every check; what cannot even be reached is checked no further."""
    with trial.trial_prefix(store) as prefix:
        first = checked("store", lambda: _rights(store, prefix))
        yield first
        if first.state == "bad":
            return
        checks: tuple[tuple[str, Callable[[Store, str], Finding]], ...] = (
            ("store conditions", _conditions),
            ("store checksums", _checksums),
            ("store uploads", _parts),
            ("store reads", _reads),
            ("store clock", _clock),
            ("store speed", _speed),
        )
        for name, look in checks:
            yield checked(name, lambda look=look: look(store, prefix))  # type: ignore[misc]


def examine_store_of(profile: Profile, url: str | None) -> tuple[Finding, ...]:
    """Run every check on the store of a profile, as its stages see it."""
    try:
        with opened_as_pods_see_it(profile, url) as store:
            return tuple(examine_store(store))
    except ModelmillError as error:
        return (failed("store", error),)


def _rights(store: Store, prefix: str) -> Finding:
    store.check()
    trial.try_rights(store, prefix)
    return _finding("store", "good", f"{store.url}: write, read, list and delete")


def _conditions(store: Store, prefix: str) -> Finding:
    check_conditional_writes(store)
    trial.try_race(store, prefix)
    words = f"{trial.RACES} races of {trial.WRITERS} writers had one winner each"
    return _finding("store conditions", "good", words)


def _checksums(store: Store, prefix: str) -> Finding:
    mode = {
        "crc32": "CRC32 goes with every upload",
        "md5": "it refuses the SDK's CRC32, so MD5 goes with every upload",
    }[store.connection.checksums]
    if trial.compares_checksums(store, prefix):
        return _finding("store checksums", "good", f"{mode}, and damage is refused")
    return Finding(
        check="store checksums",
        state="warning",
        words=f"{mode}, but the store keeps what was damaged on the way",
        fix="nothing wrong is ever read, since readers compare SHA-256; only use a newer store to "
        "notice it earlier",
    )


def _parts(store: Store, prefix: str) -> Finding:
    trial.try_parts(store, prefix)
    return _finding("store uploads", "good", "uploads in parts can be listed and abandoned")


def _reads(store: Store, prefix: str) -> Finding:
    if trial.reads_by_etag(store, prefix):
        return _finding("store reads", "good", "a read of a replaced object is refused")
    return Finding(
        check="store reads",
        state="warning",
        words="the store ignores If-Match of a read",
        fix="an object that is replaced while it is read is noticed by its SHA-256 only",
    )


def _clock(store: Store, _: str) -> Finding:
    skew = trial.clock_skew_seconds(store)
    side = "ahead of" if skew > 0 else "behind"
    words = f"{abs(skew):.0f} s {side} this machine's" if abs(skew) >= 1 else "as this machine's"
    state: State = "good" if abs(skew) < NOTICED_SECONDS else "warning"
    fix = "" if state == "good" else f"set the clocks (NTP); {REFUSED_SECONDS:.0f} s are refused"
    return Finding(check="store clock", state=state, words=words, fix=fix)


def _speed(store: Store, prefix: str) -> Finding:
    speed = trial.measure_speed(store, prefix)
    up, down = (each / MEGA for each in (speed.up_bytes_per_second, speed.down_bytes_per_second))
    words = f"{up:,.0f} MB/s up, {down:,.0f} MB/s down, every byte hashed"
    return _finding("store speed", "good", words)


def _finding(check: str, state: State, words: str) -> Finding:
    return Finding(check=check, state=state, words=words)
