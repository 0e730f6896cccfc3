"""The bulk server's fixtures, for all modules that need one."""

from __future__ import annotations

from tests.wire.bulk import certificates as certificates
from tests.wire.bulk import secure as secure
from tests.wire.bulk import server as server
from tests.wire.bulk import threads as threads
