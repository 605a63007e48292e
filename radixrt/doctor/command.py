"""What the findings look like, and whether the runtime can run here."""

from __future__ import annotations

from typing import TextIO

from radixrt.doctor.checks import Finding, examine, mending_command
from radixrt.doctor.facts import Facts

SUBJECT_WIDTH = 18


def run_doctor(facts: Facts, stream: TextIO) -> bool:
    """Print a line a finding and the command that mends them; True when the runtime can run."""
    findings = examine(facts)
    for finding in findings:
        print(f"{finding.level:8} {finding.subject:{SUBJECT_WIDTH}} {finding.text}", file=stream)
    print(file=stream)
    can_run = not any(finding.level == "problem" for finding in findings)
    print(_verdict(findings, can_run), file=stream)
    command = mending_command(facts, findings)
    if command:
        print(f"This mends what packages can mend:\n\n    {command}", file=stream)
    return can_run


def _verdict(findings: list[Finding], can_run: bool) -> str:
    counts = dict.fromkeys(("problem", "note"), 0)
    for finding in findings:
        if finding.level in counts:
            counts[finding.level] += 1
    told = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())
    return f"The runtime {'can' if can_run else 'cannot'} run here: {told}."
