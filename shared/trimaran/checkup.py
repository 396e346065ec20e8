"""The checks of `trimaran doctor`: what this machine has, what is missing, and how to mend it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimaran.errors import ModelFileError
from trimaran.machine import Machine
from trimaran.model_path import DEMO, resolve_model
from trimaran.units import format_bytes

Verdict = Literal["ok", "note", "missing"]

SMALLEST_SHARED_MEMORY = 64 << 20
PACKAGES = {  # what must be importable, by extra
    "": ("msgspec", "numpy", "yaml", "zmq", "rich", "typer"),
    "gateway": ("fastapi", "uvicorn", "jinja2", "tokenizers", "prometheus_client"),
    "attn": ("torch", "llguidance"),
}
NATIVE = "trimaran_kernels"
_TORCH_PROBE = """
import json, torch
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        verdict: "missing" means that Trimaran cannot run so.
        remedy: what to do.
        is_absent: it is not installed, which is in order where no service needs it.
    """

    subject: str
    verdict: Verdict
    detail: str
    remedy: str = ""
    is_absent: bool = False


def examine(machine: Machine, *, probe_timeout_s: float = 60.0) -> list[Finding]:
    """Every check, in the order in which a person would ask."""
    packages, kernels, torch = list(_packages()), _kernels(), _torch(machine, probe_timeout_s)
    return [
        *_platform(machine),
        *_memory(machine),
        *packages,
        kernels,
        *_gpu(machine),
        torch,
        _roles([*packages, kernels, torch]),
        _demo(),
    ]


def _platform(machine: Machine) -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    if sys.platform != "linux":
        yield Finding("system", "missing", sys.platform, "Trimaran runs on Linux")
    yield Finding("processor", "ok", machine.cpu)
    if machine.isas:
        yield Finding("instruction sets", "ok", ", ".join(machine.isas))
    else:
        yield Finding("instruction sets", "note", "no AVX2", "the portable kernels will run, slowly")
    cores = f"{machine.cores} usable"
    if machine.cpu_quota is not None:
        cores += f", the cgroup grants {machine.cpu_quota:g} of {len(machine.cpus)}"
    yield Finding("cores", "ok", cores)
    if sum(bool(node.cpus and node.memory) for node in machine.nodes) > 1:
        nodes = "; ".join(
            f"node {node.number}: {len(node.cpus)} CPUs, {format_bytes(node.memory)}"
            for node in machine.nodes
        )
        yield Finding("NUMA", "note", nodes, "one expert shard per node avoids traffic between sockets")
    else:
        yield Finding("NUMA", "ok", "one node with CPUs and memory")


def _memory(machine: Machine) -> Iterator[Finding]:
    memory = machine.memory
    detail = f"{format_bytes(memory.total)}, {format_bytes(memory.available)} available"
    if memory.limit < memory.total:
        detail += f", the cgroup allows {format_bytes(memory.limit)}"
    yield Finding("memory", "ok", detail)
    yield Finding(
        "huge pages",
        "ok",
        f"transparent: {memory.transparent_huge_pages}; "
        f"{memory.huge_pages_free} reserved of {format_bytes(memory.huge_page_size)}",
    )
    size, free = machine.shared_memory
    shared = f"{format_bytes(size)}, {format_bytes(free)} free"
    if free < SMALLEST_SHARED_MEMORY:
        remedy = "enlarge /dev/shm, e.g. docker run --shm-size=1g, or set experts.notifier to tcp"
        yield Finding("shared memory", "missing", shared, remedy)
    else:
        yield Finding("shared memory", "ok", shared)


def _packages() -> Iterator[Finding]:
    for extra, modules in PACKAGES.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        name = f"packages of {extra}" if extra else "packages"
        if missing:
            package = f"trimaran[{extra}]" if extra else "trimaran"
            verdict: Verdict = "note" if extra else "missing"  # a machine may have one service alone
            detail, remedy = f"without {', '.join(missing)}", f"pip install '{package}'"
            yield Finding(name, verdict, detail, remedy, is_absent=True)
        else:
            yield Finding(name, "ok", ", ".join(modules))


def _roles(findings: Sequence[Finding]) -> Finding:
    """Which services this installation can run, by the findings about what they need."""
    absent = {finding.subject for finding in findings if finding.verdict == "missing" or finding.is_absent}
    needs = {
        "gateway": {"packages", "packages of gateway"},
        "experts": {"packages", "kernels"},
        "attn": {"packages", "packages of attn", "kernels", "torch"},
    }
    able = [role for role, subjects in needs.items() if not subjects & absent]
    if len(able) == len(needs):
        return Finding("services", "ok", f"can run all: {', '.join(able)}")
    if not able:
        return Finding("services", "missing", "none can run here", "pip install 'trimaran[all]'")
    lacking = [role for role in needs if role not in able]
    remedy = f"for {' and '.join(lacking)} mend what is marked above, or run them elsewhere"
    return Finding("services", "note", f"can run {' and '.join(able)}", remedy)


def _kernels() -> Finding:
    """The native module is asked, not imported by name: the common core does not depend on it."""
    if importlib.util.find_spec(NATIVE) is None:
        return Finding("kernels", "note", "not installed", "pip install trimaran", is_absent=True)
    try:
        kernels: Any = importlib.import_module(NATIVE)
        detail = kernels.detect_isa()
    except (ImportError, AttributeError, OSError) as error:
        return Finding("kernels", "missing", str(error), "build them: make native, or pip install .")
    return Finding("kernels", "ok", f"native module with {detail}")


def _gpu(machine: Machine) -> Iterator[Finding]:
    if not machine.gpus:
        why = "nvidia-smi lists none" if shutil.which("nvidia-smi") else "no nvidia-smi"
        yield Finding("GPU", "note", f"none ({why})", "attention will run on the CPU, which is slow")
    for number, gpu in enumerate(machine.gpus):
        yield Finding(
            "GPU",
            "ok",
            f"cuda:{number} {gpu.name}, {format_bytes(gpu.memory)}, {format_bytes(gpu.memory_free)} free,"
            f" compute capability {gpu.capability}, driver {gpu.driver}",
        )


def _torch(machine: Machine, timeout_s: float) -> Finding:
    """In a process of its own: a broken CUDA installation can crash or hang it."""
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "note", "not installed", "pip install 'trimaran[attn]'", is_absent=True)
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        facts = json.loads(result.stdout)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["it crashed"])[-1]
        return Finding("torch", "missing", reason, "pip install 'trimaran[attn]'")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return Finding("torch", "missing", str(error), "importing it fails or hangs; check the GPU's driver")
    detail = f"{facts['version']}, " + (f"CUDA {facts['cuda']}" if facts["cuda"] else "for the CPU alone")
    if machine.gpus and not facts["gpus"]:
        remedy = "install a build for your driver's CUDA, e.g. make TORCH=torch==2.11.0+cu130"
        return Finding("torch", "note", f"{detail}; it sees no GPU", remedy)
    return Finding("torch", "ok", detail)


def _demo() -> Finding:
    try:
        path = resolve_model(DEMO)
    except ModelFileError as error:
        return Finding("demo model", "note", "not in this installation", error.remedy)
    return Finding("demo model", "ok", format_bytes(path.stat().st_size))
