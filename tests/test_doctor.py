"""``radixrt doctor``: what it makes of a machine's facts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from radixrt.doctor.checks import Finding, examine, mending_command
from radixrt.doctor.command import run_doctor
from radixrt.doctor.facts import Facts, Folder, Gpu, TorchFacts, gather
from radixrt.doctor.requirement import Requirement

REQUIREMENTS = {
    "msgspec": "msgspec>=0.19",
    "pyzmq": "pyzmq>=26",
    "torch": 'torch<2.14,>=2.11; extra == "runtime"',
    "tokenizers": 'tokenizers>=0.21; extra == "runtime"',
    "llguidance": 'llguidance<2,>=1.3; extra == "runtime"',
    "rich": 'rich>=13; extra == "runtime"',
    "triton": 'triton>=3.6; extra == "cuda"',
    "flashinfer-python": 'flashinfer-python>=0.6.15; extra == "cuda"',
    "sglang-kernel": 'sglang-kernel>=0.4.5; extra == "cuda"',
    "pytest": 'pytest>=8.3; extra == "dev"',
}
VERSIONS = {
    "msgspec": "0.22.0",
    "pyzmq": "27.3.0",
    "torch": "2.11.0+cu130",
    "tokenizers": "0.23.3",
    "llguidance": "1.9.1",
    "rich": "15.0.0",
    "triton": "3.6.0",
    "flashinfer-python": "0.6.15.post1",
    "sglang-kernel": "0.4.5",
}
H200 = Gpu("NVIDIA H200", (9, 0), 140 << 30, 139 << 30)
CPU_TORCH = TorchFacts("2.13.0+cpu")
GPU_TORCH = TorchFacts("2.11.0+cu130", "13.0", architectures=("sm_80", "sm_90"), gpus=(H200,))
FOLDERS = {
    "temporary": Folder("/tmp", "TMPDIR", True, 50 << 30),
    "triton": Folder("/home/me/.triton/cache", "TRITON_CACHE_DIR", True, 50 << 30),
    "flashinfer": Folder("/home/me/.cache", "FLASHINFER_WORKSPACE_BASE", True, 50 << 30, 12),
}


def gpu_machine() -> Facts:
    return Facts(
        python=(3, 12, 4),
        python_path="/venv/bin/python",
        requires_python=">=3.11,<3.14",
        requirements=tuple(map(Requirement.parse, REQUIREMENTS.values())),
        versions=VERSIONS,
        import_errors={},
        torch=GPU_TORCH,
        driver_cuda=(13, 0),
        cpu_features=("avx512bf16", "generic"),
        tools={"nvcc": "/usr/local/cuda/bin/nvcc", "ninja": "/usr/bin/ninja"},
        folders=FOLDERS,
    )


def cpu_machine() -> Facts:
    cuda = ("triton", "flashinfer-python", "sglang-kernel")
    versions = {name: version for name, version in VERSIONS.items() if name not in cuda}
    return replace(gpu_machine(), torch=CPU_TORCH, driver_cuda=None, versions=versions, tools={})


def without(facts: Facts, name: str) -> Facts:
    versions = {key: version for key, version in facts.versions.items() if key != name}
    return replace(facts, versions=versions)


def of(facts: Facts, subject: str) -> Finding:
    (found,) = (finding for finding in examine(facts) if finding.subject == subject)
    return found


def complaints(facts: Facts) -> list[str]:
    return [finding.subject for finding in examine(facts) if finding.level != "ok"]


@pytest.mark.parametrize("facts", [gpu_machine(), cpu_machine()], ids=["gpu", "cpu"])
def test_a_machine_in_order_has_no_complaint_and_nothing_to_mend(facts: Facts) -> None:
    assert complaints(facts) == []
    assert mending_command(facts, examine(facts)) == ""
    assert run_doctor(facts, io.StringIO())


def test_one_command_mends_everything_that_packages_can_mend() -> None:
    facts = without(without(gpu_machine(), "tokenizers"), "flashinfer-python")
    facts = replace(facts, versions={**facts.versions, "pyzmq": "25.1.2"})
    assert of(facts, "tokenizers").level == "problem"
    assert of(facts, "pyzmq").level == "problem"
    assert of(facts, "flashinfer-python").level == "note"
    printed = io.StringIO()
    assert not run_doctor(facts, printed)
    assert printed.getvalue().rstrip().splitlines()[-1].strip() == (
        "/venv/bin/python -m pip install --upgrade "
        "'flashinfer-python>=0.6.15' 'pyzmq>=26' 'tokenizers>=0.21'"
    )


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.10.1", "problem"), ("2.11.0+cu130", "ok"), ("2.13.9", "ok"), ("2.14.0", "problem")],
)
def test_torch_is_right_within_its_range(version: str, level: str) -> None:
    facts = cpu_machine()
    facts = replace(facts, torch=replace(CPU_TORCH, version=version))
    assert of(facts, "torch").level == level


def test_without_torch_nothing_runs() -> None:
    facts = replace(without(cpu_machine(), "torch"), torch=None, torch_error="no such module")
    assert of(facts, "torch").level == "problem"
    assert "'torch>=2.11,<2.14'" in mending_command(facts, examine(facts))
    assert not run_doctor(facts, io.StringIO())


def test_a_torch_for_a_newer_cuda_than_the_drivers_is_replaced_by_an_older_build() -> None:
    facts = replace(gpu_machine(), torch=replace(GPU_TORCH, gpus=()), driver_cuda=(12, 4))
    finding = of(facts, "gpu")
    assert finding.level == "note"  # the CPU computes
    assert "12.4" in finding.text
    assert "13.0" in finding.text
    command = mending_command(facts, examine(facts))
    assert "--extra-index-url https://download.pytorch.org/whl/cu126 " in command


def test_a_cpu_build_beside_a_gpu_is_a_note_with_the_build_that_the_driver_runs() -> None:
    facts = replace(cpu_machine(), driver_cuda=(13, 1))
    assert of(facts, "gpu").level == "note"
    assert "/whl/cu130 'torch" in mending_command(facts, examine(facts))


@pytest.mark.parametrize(
    ("architectures", "capability", "level"),
    [
        (("sm_80", "sm_90"), (9, 0), "ok"),
        (("sm_80", "sm_86"), (8, 9), "ok"),  # code for 8.6 runs on 8.9
        (("sm_80", "sm_90"), (12, 0), "problem"),
        (("sm_80", "compute_90"), (12, 0), "ok"),
        (("sm_90a",), (9, 0), "ok"),
        (("sm_86",), (8, 0), "problem"),
    ],
)
def test_a_gpu_needs_a_torch_with_code_for_it(
    architectures: tuple[str, ...], capability: tuple[int, int], level: str
) -> None:
    gpu = replace(H200, capability=capability)
    torch = replace(GPU_TORCH, architectures=architectures, gpus=(gpu,))
    assert of(replace(gpu_machine(), torch=torch), "gpu").level == level


def test_a_gpu_that_others_fill_is_a_note() -> None:
    torch = replace(GPU_TORCH, gpus=(replace(H200, free_bytes=10 << 30),))
    assert of(replace(gpu_machine(), torch=torch), "gpu").level == "note"


def test_a_package_that_does_not_load_is_told_with_its_reason() -> None:
    facts = replace(gpu_machine(), import_errors={"flashinfer-python": "undefined symbol: x"})
    finding = of(facts, "flashinfer-python")
    assert finding.level == "note"
    assert "undefined symbol: x" in finding.text
    facts = replace(gpu_machine(), import_errors={"tokenizers": "no libstdc++"})
    assert of(facts, "tokenizers").level == "problem"


def test_a_missing_compiler_is_told_and_ninja_is_a_package() -> None:
    finding = of(replace(gpu_machine(), tools={}), "flashinfer-python")
    assert finding.level == "note"
    assert "nvcc and ninja" in finding.text
    assert "CUDA_HOME" in finding.text
    assert finding.pip == ("ninja",)


def test_an_optional_package_says_what_is_missing_without_it() -> None:
    finding = of(without(cpu_machine(), "llguidance"), "llguidance")
    assert finding.level == "note"
    assert "regex" in finding.text


def test_without_native_kernels_the_runtime_is_slower_and_still_runs() -> None:
    facts = replace(cpu_machine(), native_error="no module named radixrt._native")
    assert of(facts, "native").level == "note"
    assert run_doctor(facts, io.StringIO())
    assert of(replace(cpu_machine(), cpu_features=("generic",)), "native").level == "note"


@pytest.mark.parametrize(("name", "level"), [("temporary", "problem"), ("triton", "note")])
def test_a_folder_that_cannot_be_written_to_names_the_variable_that_moves_it(
    name: str, level: str
) -> None:
    folder = replace(FOLDERS[name], is_writable=False)
    facts = replace(gpu_machine(), folders={**FOLDERS, name: folder})
    (finding,) = (found for found in examine(facts) if found.level != "ok")
    assert finding.level == level
    assert folder.variable in finding.text


def test_a_full_disk_is_a_note() -> None:
    folder = replace(FOLDERS["temporary"], free_bytes=1 << 20)
    facts = replace(cpu_machine(), folders={**FOLDERS, "temporary": folder})
    assert complaints(facts) == ["folder"]


@pytest.mark.parametrize("python", [(3, 10, 12), (3, 14, 0)])
def test_another_python_is_a_problem(python: tuple[int, int, int]) -> None:
    finding = of(replace(cpu_machine(), python=python), "python")
    assert finding.level == "problem"
    assert ">=3.11,<3.14" in finding.text


def test_this_machine_runs_the_runtime() -> None:
    facts = gather()
    assert facts.torch is not None, facts.torch_error
    assert facts.versions["torch"] == facts.torch.version
    assert facts.cpu_features[-1] == "generic"
    printed = io.StringIO()
    assert run_doctor(facts, printed), printed.getvalue()


# ---------------------------------------------------------------- requirements


@pytest.mark.parametrize(
    ("bounds", "right", "wrong"),
    [
        (">=2.11,<2.14", "2.11", "2.14.0"),
        (">=0.6.15", "0.6.15.post1", "0.6.9"),
        ("==1.2", "1.2.0", "1.2.1"),
        ("!=1.2", "1.3", "1.2.0"),
        ("~=1.4", "1.9", "2.0"),
        ("<=3", "3.0.0", "3.0.1"),
        (">3", "3.1", "3.0"),
    ],
)
def test_versions_within_bounds(bounds: str, right: str, wrong: str) -> None:
    requirement = Requirement.parse(f"thing{bounds}")
    assert requirement.allows(right)
    assert not requirement.allows(wrong)


def test_a_requirement_keeps_its_extra_and_is_written_as_pip_reads_it() -> None:
    requirement = Requirement.parse("Torch[x]<2.14,>=2.11 ; python_version > '3' and extra == 'a'")
    assert (requirement.name, requirement.extra) == ("torch", "a")
    assert str(requirement) == "torch>=2.11,<2.14"
    with pytest.raises(ValueError, match="bound"):
        Requirement.parse("torch>=new")
