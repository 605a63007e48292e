"""``python -m radixrt.runtime`` serves a model, like ``radixrt serve``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        from radixrt.runtime.serving.supervisor import run_engine

        sys.exit(run_engine(sys.argv[2]))
    from radixrt.cli import main

    main(["serve", *sys.argv[1:]])
