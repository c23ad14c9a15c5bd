"""Print a command of the README, so that what is tested is what is documented.

python scripts/readme_command.py train     # the command that installs and trains
python scripts/readme_command.py test      # the command that installs and tests
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ENDS = {"train": r"python train\.py objective=dpo data=onpolicy$", "test": r"pytest$"}


def command(which: str) -> str:
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("    pip install") and re.search(ENDS[which], line.strip()):
            return line.strip()
    raise SystemExit(f"the README has no {which} command that ends in {ENDS[which]}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ENDS:
        raise SystemExit(__doc__)
    print(command(sys.argv[1]))
