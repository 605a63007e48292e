"""The five workloads, as ``radixrt bench`` runs them."""

from radixrt.bench.workloads import WORKLOADS, Counts, Generate, Prompts

__all__ = ["WORKLOADS", "Counts", "Generate", "Prompts"]
