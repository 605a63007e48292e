"""``python -m radixrt.gateway``."""

from radixrt.gateway.server import main

main()
