"""`python -m tests.families`: the README's table of model families."""

from __future__ import annotations

import torch

from tests.families.rows import table

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
