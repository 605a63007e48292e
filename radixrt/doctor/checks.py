"""What the facts mean: one finding a line, with what mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radixrt.doctor.facts import Facts, Folder, TorchFacts
from radixrt.doctor.requirement import Requirement

TORCH_INDEX = "https://download.pytorch.org/whl"
CUDA_BUILDS = {12: "cu126", 13: "cu130"}
"""Major version of CUDA that a driver runs → the build of torch that every such driver runs."""

OPTIONAL = {
    "llguidance": "without it calls with a regex, a JSON schema or a grammar are refused",
    "rich": "without it tables are plain lines",
}
"""Packages of the ``runtime`` extra that a runtime serves without → what is missing then."""

KERNELS = {
    "triton": "without it a GPU computes with torch's operations, several times slower",
    "flashinfer-python": "without it prompts are computed by Triton's attention, which is slower",
    "sglang-kernel": "without it its operations come from the next provider",
}
"""Packages that matter with a GPU → what is missing without them."""

LEAST_FREE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """``problem``: the runtime cannot run so; ``note``: it runs, but not as well as it could.

    ``pip``: requirements that mend it; ``index``: where they are found beside PyPI.
    """

    level: Literal["ok", "note", "problem"]
    subject: str
    text: str
    pip: tuple[str, ...] = ()
    index: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Return the findings, in the order one reads them."""
    findings = [_python(facts), *_torch(facts), *_kernels(facts), _native(facts)]
    findings += [_package(facts, requirement) for requirement in _needed(facts)]
    return findings + _folders(facts)


def mending_command(facts: Facts, findings: list[Finding]) -> str:
    """Return the one command that mends what packages can mend; empty when there is nothing."""
    packages = sorted({package for finding in findings for package in finding.pip})
    if not packages:
        return ""
    indexes = sorted({finding.index for finding in findings if finding.index})
    quoted = [f"'{package}'" for package in packages]
    options = [f"--extra-index-url {index}" for index in indexes]
    return " ".join([facts.python_path, "-m pip install --upgrade", *options, *quoted])


def _python(facts: Facts) -> Finding:
    version = ".".join(map(str, facts.python))
    needed = Requirement.parse(f"python{facts.requires_python}")
    if needed.allows(version):
        return Finding("ok", "python", version)
    return Finding(
        "problem",
        "python",
        f"{version}; radixrt runs on {needed.range}: make a virtual "
        "environment with such a Python and install radixrt there",
    )


def _torch(facts: Facts) -> list[Finding]:
    needed = _requirement(facts, "torch")
    seen = facts.torch
    if seen is None:
        text = facts.torch_error if "torch" in facts.versions else "not installed"
        return [Finding("problem", "torch", f"{text}; every model needs it", (str(needed),))]
    built = f"CUDA {seen.cuda}" if seen.cuda else f"HIP {seen.hip}" if seen.hip else "CPU only"
    told = f"{seen.version}, {built}"
    if not needed.allows(seen.version):
        text = f"{told}; radixrt is tested with {needed.range}"
        return [Finding("problem", "torch", text, (str(needed),)), *_gpus(facts, seen)]
    return [Finding("ok", "torch", told), *_gpus(facts, seen)]


def _gpus(facts: Facts, seen: TorchFacts) -> list[Finding]:
    if seen.gpus:
        return [_gpu(facts, seen, index) for index in range(len(seen.gpus))]
    driver = facts.driver_cuda
    if driver is None:
        return [Finding("ok", "gpu", "none found: the CPU computes")]
    told = f"the driver runs CUDA up to {driver[0]}.{driver[1]}"
    mend = _torch_build(facts)
    if not seen.cuda:
        return [
            Finding("note", "gpu", f"{told}, but this torch is for CPUs: the CPU computes", *mend)
        ]
    if int(seen.cuda.split(".")[0]) > driver[0]:
        text = f"{told}, this torch needs {seen.cuda}: the CPU computes; update the driver or "
        return [Finding("note", "gpu", text + "take a torch for the older CUDA", *mend)]
    why = seen.error or "it finds no usable GPU"
    text = f"{told}, but torch cannot use it: {why}; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    return [Finding("note", "gpu", text)]


def _gpu(facts: Facts, seen: TorchFacts, index: int) -> Finding:
    gpu = seen.gpus[index]
    major, minor = gpu.capability
    told = f"cuda:{index} {gpu.name}, capability {major}.{minor}, " + (
        f"{gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free"
    )
    if seen.cuda and not _runs_on(seen.architectures, major, minor):
        text = f"{told}; this torch has no kernels for it, only {', '.join(seen.architectures)}; "
        return Finding(
            "problem",
            "gpu",
            text + "use device=cpu or another build of torch",
            *_torch_build(facts),
        )
    if seen.cuda and major < 8:
        return Finding("note", "gpu", f"{told}; no bfloat16 in hardware: use dtype=float16")
    if gpu.free_bytes < gpu.total_bytes // 2:
        return Finding("note", "gpu", f"{told}; other processes hold the rest")
    return Finding("ok", "gpu", told)


def _runs_on(architectures: tuple[str, ...], major: int, minor: int) -> bool:
    """Whether code for one of these runs on a capability: compiled for its major version, or in the
    portable form of an older one."""
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdigit, number))
        built = int(digits[:-1] or 0), int(digits[-1:] or 0)
        is_same = built[0] == major and built[1] <= minor
        if is_same or (kind == "compute" and built <= (major, minor)):
            return True
    return False


def _torch_build(facts: Facts) -> tuple[tuple[str, ...], str]:
    """Return the torch that the driver runs, and where it is found."""
    if facts.driver_cuda is None:
        return (), ""
    build = CUDA_BUILDS.get(min(facts.driver_cuda[0], max(CUDA_BUILDS)))
    return (
        ((), "")
        if build is None
        else ((str(_requirement(facts, "torch")),), f"{TORCH_INDEX}/{build}")
    )


def _kernels(facts: Facts) -> list[Finding]:
    if facts.torch is None or not facts.torch.gpus:
        return [Finding("ok", "kernels", "triton, flashinfer and sgl_kernel serve GPUs alone")]
    findings = []
    for name, without in KERNELS.items():
        finding = _optional(facts, _requirement(facts, name), without)
        if name == "flashinfer-python" and finding.level == "ok":
            finding = _flashinfer(facts, finding)
        findings.append(finding)
    return findings


def _flashinfer(facts: Facts, finding: Finding) -> Finding:
    """FlashInfer compiles its kernels when they are first used, and keeps them."""
    kept = facts.folders["flashinfer"].num_files
    missing = [tool for tool in ("nvcc", "ninja") if tool not in facts.tools]
    told = f"{finding.text}, {kept} compiled libraries kept"
    if not missing:
        return Finding("ok", finding.subject, told)
    text = f"{told}; {' and '.join(missing)} not found: "
    text += "kernels that are not kept yet cannot be compiled"
    if "nvcc" in missing:
        text += "; install the CUDA toolkit and let CUDA_HOME name its folder"
    return Finding("note", finding.subject, text, ("ninja",) if "ninja" in missing else ())


def _native(facts: Facts) -> Finding:
    if facts.native_error and facts.torch is None:
        return Finding("note", "native", "not examined: it needs torch")
    if facts.native_error:
        text = f"{facts.native_error}: CPUs compute with torch's operations, several times slower; "
        return Finding("note", "native", text + "install radixrt again with a C++ compiler at hand")
    told = f"kernels for {', '.join(facts.cpu_features)}"
    if facts.cpu_features == ("generic",):
        return Finding("note", "native", f"{told}: this CPU has neither AVX2 nor AVX-512")
    return Finding("ok", "native", told)


def _needed(facts: Facts) -> list[Requirement]:
    return [
        requirement
        for requirement in facts.requirements
        if requirement.extra in ("", "runtime") and requirement.name != "torch"
    ]


def _package(facts: Facts, requirement: Requirement) -> Finding:
    if requirement.name in OPTIONAL:
        return _optional(facts, requirement, OPTIONAL[requirement.name])
    wrong = _what_is_wrong(facts, requirement)
    if wrong:
        return Finding("problem", requirement.name, wrong, (str(requirement),))
    return Finding("ok", requirement.name, facts.versions[requirement.name])


def _optional(facts: Facts, requirement: Requirement, without: str) -> Finding:
    wrong = _what_is_wrong(facts, requirement)
    if wrong:
        return Finding("note", requirement.name, f"{wrong}; {without}", (str(requirement),))
    return Finding("ok", requirement.name, facts.versions[requirement.name])


def _what_is_wrong(facts: Facts, requirement: Requirement) -> str:
    version = facts.versions.get(requirement.name)
    if version is None:
        return "not installed"
    if not requirement.allows(version):
        return f"{version} is installed; radixrt is tested with {requirement.range}"
    error = facts.import_errors.get(requirement.name)
    return f"{version} does not load: {error}" if error else ""


def _folders(facts: Facts) -> list[Finding]:
    has_gpu = facts.torch is not None and bool(facts.torch.gpus)
    findings = []
    for name, folder in facts.folders.items():
        if name == "temporary":
            findings.append(_folder(folder, "problem", "the processes of a runtime meet there"))
        elif has_gpu:
            findings.append(_folder(folder, "note", f"{name} would compile at every start"))
    return findings


def _folder(folder: Folder, level: Literal["note", "problem"], meaning: str) -> Finding:
    told = f"{folder.path}, {folder.free_bytes / 2**30:.1f} GiB free"
    if not folder.is_writable:
        text = f"{told}, cannot be written to: {meaning}; let {folder.variable} name another folder"
        return Finding(level, "folder", text)
    if folder.free_bytes < LEAST_FREE_BYTES:
        text = f"{told}: make room, or let {folder.variable} name another folder"
        return Finding("note", "folder", text)
    return Finding("ok", "folder", told)


def _requirement(facts: Facts, name: str) -> Requirement:
    return next(
        (found for found in facts.requirements if found.name == name), Requirement(name, ())
    )
