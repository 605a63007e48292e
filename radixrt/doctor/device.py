"""What torch sees, as JSON: ``python -m radixrt.doctor.device``.

A process of its own: a broken CUDA library ends the process that loads it.
"""

from __future__ import annotations

import json

import torch


def main() -> None:
    """Print torch's version, what it was built for and the GPUs it can use."""
    gpus, error = [], ""
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, total = torch.cuda.mem_get_info(index)
            gpus.append(
                {
                    "name": torch.cuda.get_device_name(index),
                    "capability": torch.cuda.get_device_capability(index),
                    "total_bytes": total,
                    "free_bytes": free,
                }
            )
    except RuntimeError as failure:
        error = str(failure).splitlines()[0]
    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "architectures": torch.cuda.get_arch_list() if gpus else [],
        "gpus": gpus,
        "error": error,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
