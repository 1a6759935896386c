"""Take the same nets, data, seeds and budgets through KDQ and its peers, and write one table.

```
pip install ./examples
python benchmarks/peers/run.py --seeds 0,1,2 --out DIR --venvs DIR
python benchmarks/peers/run.py --seeds 0 --only torchao,ort,kdq --nets resnet8 --bits W8A8,W4A4 # the short form
```
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    runpy.run_module("benchmarks.peers.command", run_name="__main__")
