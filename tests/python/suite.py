# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the tests and sums up: N passed, N failed, N skipped."""

import pathlib
import sys
import unittest

suite = unittest.defaultTestLoader.discover(str(pathlib.Path(__file__).parent))
result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)

# A part of a test (subTest) knows the test that it is a part of.
failed = {getattr(test, "test_case", test).id() for test, _ in
          result.failures + result.errors}
skipped = {test.id(): why for test, why in result.skipped}
for name, why in skipped.items():
    print(f"SKIP {name}: {why}")
passed = result.testsRun - len(failed) - len(skipped)
print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
sys.exit(bool(failed) or passed == 0)
