"""Reproduce figures of arXiv 2404.14367: `python scripts/reproduce.py --list`."""

import sys
from pathlib import Path

from lit_pref.app.paper.reproduce import main

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    sys.exit(
        main(
            criteria=ROOT / "docs" / "paper" / "criteria",
            docs=ROOT / "docs" / "paper",
            cache=Path("runs") / "paper",
        )
    )
