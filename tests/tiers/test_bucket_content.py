"""What is read of a blob for a bucket."""

from __future__ import annotations

import os

import pytest

from fuse_tier.errors import Damaged
from fuse_tier.tiers.bucket_content import StreamedContent
from tests.harness.unreadable import Unreadable
from tests.harness.unreadable import unreadable as unreadable


@pytest.mark.fuse
def test_what_cannot_be_read_is_damaged(unreadable: Unreadable) -> None:
    fd = unreadable.open(8192, 4096)
    try:
        with pytest.raises(Damaged, match="cannot be read: Input/output error"):
            list(StreamedContent(fd, unreadable.blob(8192)).pieces())
    finally:
        os.close(fd)
