"""Runs pytest on its arguments, for test runners that start a Python file."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-m", "not slow", *sys.argv[1:]]))
