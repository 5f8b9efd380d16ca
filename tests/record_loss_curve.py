"""Write down the loss of a small GV's first steps, for `test_learning.py`; to be run when training changed on purpose.

python tests/record_loss_curve.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from fakes_learning import STEPS, as_table, loss_curve

CURVE = Path(__file__).parent / "data" / "loss_curve.json"


def main() -> None:
    """Train and write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = as_table(loss_curve(Path(folder), STEPS))
    lines = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in table.items())
    CURVE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
