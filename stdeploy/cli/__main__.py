"""`python -m stdeploy.cli`."""

from __future__ import annotations

from stdeploy.cli.app import main

if __name__ == "__main__":
    main()
