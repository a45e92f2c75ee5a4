"""A store that lets the second writer win is refused at start, and nothing of the probe stays."""

from __future__ import annotations

import pytest

from pnode.errors import ConfigError, StoreUnavailable
from pnode.storage.blob import BlobStore
from pnode.storage.probe import probe_conditional_puts
from tests.storage.storage_fakes import Around, IgnoresIfMatch, IgnoresIfNoneMatch, LosesPuts, RefusesTooLate


@pytest.mark.parametrize("fault", [IgnoresIfNoneMatch, IgnoresIfMatch, RefusesTooLate])
def test_a_store_that_ignores_conditions_is_refused(store: BlobStore, fault: type[Around]) -> None:
    with pytest.raises(ConfigError, match="no checkpoint would be safe"):
        probe_conditional_puts(fault(store))
    assert list(store.keys("")) == []


def test_a_store_that_takes_no_put_says_so(store: BlobStore) -> None:
    with pytest.raises(StoreUnavailable):
        probe_conditional_puts(LosesPuts(store, StoreUnavailable("read-only")))
