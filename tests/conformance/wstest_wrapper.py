"""Runs Autobahn's `wstest`, which binds every address, on 127.0.0.1 alone. It is Python 2.7 that runs it."""

import functools
import importlib
import sys

# The autobahn.py that lies beside this file is not the one that wstest imports.
del sys.path[0]

wstest = importlib.import_module("autobahntestsuite.wstest")
fuzzing = importlib.import_module("autobahntestsuite.fuzzing")
fuzzing.listenWS = functools.partial(fuzzing.listenWS, interface="127.0.0.1")  # type: ignore[attr-defined]
wstest.run()
