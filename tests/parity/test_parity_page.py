"""The page on parity names tests that there are, and all of them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_rows_and_tests_name_each_other():
    page = (ROOT / "docs" / "objectives" / "parity.md").read_text()
    source = (ROOT / "tests" / "parity" / "test_trl.py").read_text()
    named = re.findall(r"`(test_\w+)(?:\[([^\]`]+)\])?`", page)
    assert {name for name, _ in named} == set(re.findall(r"^def (test_\w+)", source, re.M))
    cases = [case for _, case in named if case and not re.fullmatch(r"[\d.]+", case)]
    assert len(named) == len(set(named))
    assert all(f'"{case}"' in source for case in cases)
