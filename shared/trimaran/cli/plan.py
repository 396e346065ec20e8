"""`trimaran plan`: what of a model would go where, and whether it fits."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from trimaran.bandwidth import measure_ram_bandwidth
from trimaran.cli import options
from trimaran.config import Config
from trimaran.errors import PlanError
from trimaran.gguf import GGUFFile
from trimaran.machine import Gpu, Machine, read_machine
from trimaran.model_path import resolve_model
from trimaran.plan import Bandwidth, GpuShare, Plan, check_plan, make_plan
from trimaran.plan.devices import gpu_numbers
from trimaran.replicas import for_replica, replicas
from trimaran.rules import apply_rules
from trimaran.spec import read_spec
from trimaran.units import format_bytes

_MOST_THREADS = 64


def plan(
    model: Annotated[
        str | None, typer.Argument(help="GGUF file, the first of split files, a folder, or 'demo'.")
    ] = None,
    config_file: options.ConfigFile = None,
    device: options.Device = None,
    context: options.Context = None,
    rules: options.Rules = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for GPUs with this memory each, e.g. 48GiB.")
    ] = None,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for this much RAM, e.g. 512GiB.")
    ] = None,
    ram_bandwidth: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="RAM bandwidth a second, e.g. 440GB. Measured without it."),
    ] = None,
    gpu_bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="GPU memory bandwidth a second, e.g. 1000GB.")
    ] = None,
    assignments: options.Assignments = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Show what of a model goes to the GPU and what to RAM, and refuse what cannot fit (exit code 4).

    Only the file's metadata are read, so a 400 GB model takes a second. The predicted speed is an upper bound
    from the bytes that one token reads.

    Examples:

      trimaran plan DeepSeek-R1-Q4_K_M-00001-of-00010.gguf
      trimaran plan r1.gguf --gpu-memory 48GiB --ram 512GiB --context 64K
      trimaran plan r1.gguf --device cuda:0+cuda:1 --gpu-memory 16GiB
      trimaran plan r1.gguf --ram-bandwidth 440GB --gpu-bandwidth 1000GB --json
    """
    config = options.make_config(
        config_file, assignments, model=model, device=device, context=context, rules=rules, debug=debug
    )
    machine = read_machine()
    bandwidth = Bandwidth(
        ram=_ram_bandwidth(machine, given=ram_bandwidth, is_here=ram is None),
        gpu=None if gpu_bandwidth is None else float(options.size(gpu_bandwidth, "--gpu-bandwidth")),
    )
    with GGUFFile.open(resolve_model(config.model)) as file:
        spec = read_spec(file)
        n_gpus = len(machine.gpus) if gpu_memory is None else None
        chosen = [apply_rules(for_replica(config, n), spec, n_gpus) for n in replicas(config)]
        plans = [
            make_plan(
                spec,
                file.tensors,
                *_for_machine(machine, each.config, gpu_memory, ram),
                bandwidth,
                held=each.held(file.tensors),
            )
            for each in chosen
        ]
    if json:
        fields = [{**asdict(made), "problems": made.problems()} for made in plans]
        print(msgspec.json.encode({**fields[0], "further_replicas": fields[1:]}).decode())
    else:
        for made, each in zip(plans, chosen, strict=True):
            show(made, Console(highlight=False))
            for notice in each.notices:
                print(notice)
    for made in plans:
        check_plan(made)


def show(plan: Plan, console: Console) -> None:
    """Prints the plan as a table and sentences."""
    table = Table(title=f"{plan.model}, attention on {plan.device}", title_justify="left", box=None)
    for heading in ("part", "where"):
        table.add_column(heading, no_wrap=True)
    for heading in ("in the file", "in memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("types")
    for item in plan.items:
        sizes = (format_bytes(item.file_bytes), format_bytes(item.nbytes))
        table.add_row(item.part, item.place, *sizes, item.types)
    place = "RAM" if plan.gpu is None else "GPU"
    table.add_row("latent cache", place, "", format_bytes(plan.kv_bytes), f"{plan.context} tokens")
    if plan.experts:
        table.add_row("experts held beside", place, "", format_bytes(plan.experts), "the most used")
    table.add_row("workspace", place, "", format_bytes(plan.workspace), "")
    console.print(table)
    for line in _summary(plan):
        console.print(line, soft_wrap=True)


def _summary(plan: Plan) -> list[str]:
    lines = [""]
    if plan.skipped:
        lines.append(f"skipped: {format_bytes(plan.skipped)} of the file (multi-token prediction)")
    if plan.re_encoded:
        types = ", ".join(plan.re_encoded)
        lines.append(f"on the GPU: {types} matrices become Q8_0, whose weights differ a little")
    lines.append(f"cache: {format_bytes(plan.kv_per_token * 1000)} per 1,000 tokens")
    if plan.context < plan.wanted_context:
        lines.append(f"context: {plan.context} of the model's {plan.wanted_context} tokens fit")
    lines += [_gpu_line(share, several=len(plan.gpus) > 1) for share in plan.gpus]
    lines.append(_budget_line("RAM", plan.ram.needed, plan.ram.available))
    lines.append(_speed_line(plan))
    if not plan.problems():
        lines.append("verdict: it fits")
    return lines


def _gpu_line(share: GpuShare, *, several: bool) -> str:
    if not several:
        return _budget_line("GPU", share.budget.needed, share.budget.available)
    parts = ", ".join(
        (
            f"layers {share.first_layer}-{share.last_layer}",
            f"{format_bytes(share.weights)} weights",
            f"{format_bytes(share.kv_bytes)} cache",
            f"{format_bytes(share.workspace)} workspace",
            *([f"{format_bytes(share.experts)} routed experts"] if share.experts else []),
        )
    )
    line = _budget_line(f"cuda:{share.number}", share.budget.needed, share.budget.available)
    return f"{line}: {parts}"


def _budget_line(name: str, needed: int, available: int) -> str:
    return f"{name}: {format_bytes(needed)} needed of {format_bytes(available)}"


def _speed_line(plan: Plan) -> str:
    speed = plan.speed
    read = f"a token reads {format_bytes(speed.ram_bytes)} of RAM"
    if speed.gpu_bytes:
        read += f" and {format_bytes(speed.gpu_bytes)} of GPU memory"
    if speed.tokens_per_second is None:
        return f"decode: {read}; give --ram-bandwidth and --gpu-bandwidth for a bound in tokens per second"
    return f"decode: {read}: {speed.tokens_per_second:.3g} tokens/s at most, for one request"


def _for_machine(
    machine: Machine, config: Config, gpu_memory: str | None, ram: str | None
) -> tuple[Machine, Config]:
    """The machine as asked for on the command line, and a configuration that uses its GPU."""
    if ram is not None:
        nbytes = options.size(ram, "--ram")
        machine = replace(machine, memory=replace(machine.memory, limit=nbytes, total=nbytes))
    if gpu_memory is not None:
        device = "cuda:0" if config.attn.device == "auto" else config.attn.device
        named = [name for name in config.attn.replicas or (device,) if name != "cpu"]
        if not named:
            raise PlanError("--gpu-memory contradicts --device cpu")
        size = options.size(gpu_memory, "--gpu-memory")
        gpu = Gpu("planned", memory=size, memory_free=size, capability="", driver="")
        machine = replace(machine, gpus=(gpu,) * (1 + max(max(gpu_numbers(name)) for name in named)))
        config = msgspec.structs.replace(
            config, attn=msgspec.structs.replace(config.attn, device=device, gpu_memory="auto")
        )
    return machine, config


def _ram_bandwidth(machine: Machine, *, given: str | None, is_here: bool) -> float | None:
    """As given, or measured; another machine's cannot be measured here."""
    if given is not None:
        return float(options.size(given, "--ram-bandwidth"))
    return measure_ram_bandwidth(min(machine.cores, _MOST_THREADS)) if is_here else None
