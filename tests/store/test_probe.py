"""Whether a store keeps the promise the commit protocol rests on."""

import pytest

from modelmill.spec.errors import Retry, StoreUnfit
from modelmill.store.probe import check_conditional_writes
from modelmill.store.s3 import Store
from tests.store.proxy import Proxy


def test_store_with_conditions_passes_and_keeps_nothing(store: Store) -> None:
    """The probe leaves no object behind."""
    check_conditional_writes(store)
    assert list(store.list("probes/")) == []


@pytest.mark.parametrize("ignored", ["if_none_match", "if_match"])
def test_store_that_ignores_a_condition_is_refused(store: Store, ignored: str) -> None:
    """Negative control: the same store behind something that drops the header."""

    class Careless(Store):
        def put(
            self,
            key: str,
            body: bytes,
            *,
            if_none_match: bool = False,
            if_match: str | None = None,
        ) -> str:
            return super().put(
                key,
                body,
                if_none_match=if_none_match and ignored != "if_none_match",
                if_match=None if ignored == "if_match" else if_match,
            )

    careless = Careless(store.bucket, store.prefix, store.connection)
    with pytest.raises(StoreUnfit, match="ignores the condition"):
        check_conditional_writes(careless)
    assert list(store.list("probes/")) == []


@pytest.mark.parametrize("operation", ["PutObject", "*"])
def test_store_behind_something_that_drops_conditions_is_refused(
    behind: Store, proxy: Proxy, operation: str
) -> None:
    """A gateway that ignores `If-None-Match` is found out, with 74 and no second attempt."""
    proxy.always(operation, "no condition")

    with pytest.raises(StoreUnfit, match="ignores the condition of a write") as caught:
        check_conditional_writes(behind)

    assert (caught.value.exit_code, caught.value.retry) == (74, Retry.NEVER)
    assert "use a store that has conditional writes" in caught.value.fix
    assert list(behind.list("probes/")) == []
