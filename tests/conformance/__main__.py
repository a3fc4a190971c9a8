"""`python -m tests.conformance`: the table of docs/nir.md."""

from __future__ import annotations

import torch

from tests.conformance.rows import table

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
