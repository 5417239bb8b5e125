"""The one constant that scales every time in the tests."""

import os

#: One millisecond, in seconds, times EVTWS_TIME_SCALE: raise that on a slow or busy machine.
MS = 0.001 * float(os.environ.get("EVTWS_TIME_SCALE", "1"))

#: How long a test waits for what must happen; reached only when it fails.
SOON = 10_000 * MS
