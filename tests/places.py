"""Where things are, for tests at any depth."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"
"""Real data and files of others, beside the checkout on some machines; tests that use them skip elsewhere."""
