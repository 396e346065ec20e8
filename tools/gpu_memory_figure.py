"""Draws docs/images/gpu-memory.svg: where a 24 GiB GPU's bytes go, by the plan that the services obey.

python tools/gpu_memory_figure.py           writes it
python tools/gpu_memory_figure.py --table   prints its figures as Markdown
"""

from __future__ import annotations

import sys
from functools import partial
from math import prod
from pathlib import Path

from trimaran.config_loader import load_config
from trimaran.gguf import GGMLType, TensorInfo
from trimaran.gguf.mix import mix_named
from trimaran.machine import Gpu, Machine, Memory
from trimaran.model_tensors import global_shapes, layer_shapes
from trimaran.plan import GPU_RESERVE, Plan, make_plan
from trimaran.synth import REAL_SPECS

FIGURE = Path(__file__).parent.parent / "docs/images/gpu-memory.svg"
SPEC = REAL_SPECS["DeepSeek-V3"]
GIB = 1 << 30
CASES = (("fp8", 32768), ("fp8", 131072), ("bf16", 32768), ("bf16", 131072))
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#7a5195", "#888888", "#bbbbbb")
LEFT, TOP, WIDTH, BAR, GAP = 130, 30, 640, 34, 18

Parts = list[tuple[str, int]]


def directory() -> dict[str, TensorInfo]:
    """The tensors of a DeepSeek-V3 in Q4_K_M."""
    shapes = global_shapes(SPEC)
    for layer in range(SPEC.n_layers):
        shapes |= layer_shapes(SPEC, layer, "kv_b", biased_gate=True)
    choose = partial(mix_named("Q4_K_M").choose, n_layers=SPEC.n_layers)
    return {name: _info(name, shape, choose(name, shape)) for name, shape in shapes.items()}


def _info(name: str, shape: tuple[int, ...], kind: GGMLType) -> TensorInfo:
    return TensorInfo(name, kind, shape, 0, 0, prod(shape[:-1]) * kind.row_bytes(shape[-1]))


def plan_for(kind: str, context: int) -> Plan:
    """The plan on a server with one 24 GiB card."""
    memory = Memory(512 * GIB, 512 * GIB, 512 * GIB, 0, 0, "madvise")
    card = Gpu("card", 24 * GIB, 24 * GIB, "8.9", "")
    machine = Machine("cpu", ("avx2",), (0,), None, memory, (), (GIB, GIB), (card,))
    options = {"attn.device": "cuda:0", "attn.context_length": context, "attn.kv_dtype": kind}
    return make_plan(SPEC, directory(), machine, load_config(None, options, {}))


def parts_of(plan: Plan) -> Parts:
    """Names and bytes of what lies on the GPU, largest of the weights first, then what a step needs."""
    weights = sorted((item for item in plan.items if item.place == "GPU"), key=lambda item: -item.nbytes)
    parts = [(item.part, item.nbytes) for item in weights]
    parts += [("latent cache", plan.kv_bytes), ("workspace", plan.workspace), ("CUDA", GPU_RESERVE)]
    return parts


def table(columns: dict[str, Parts]) -> str:
    """GiB of every part, as Markdown."""
    names = [name for name, _ in next(iter(columns.values()))]
    lines = ["| part | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row, name in enumerate(names):
        cells = (f"{parts[row][1] / GIB:.2f}" for parts in columns.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sums = (f"{sum(nbytes for _, nbytes in parts) / GIB:.2f}" for parts in columns.values())
    return "\n".join([*lines, "| **sum** (of 24) | " + " | ".join(sums) + " |"])


def draw(columns: dict[str, Parts]) -> str:
    """A bar for each case."""
    height = TOP + len(columns) * (BAR + GAP) + 60
    shapes = [_bar(row, label, parts) for row, (label, parts) in enumerate(columns.items())]
    edge = LEFT + WIDTH
    shapes.append(f'<line x1="{edge}" y1="{TOP - 8}" x2="{edge}" y2="{height - 62}" stroke="#c00"/>')
    shapes.append(f'<text x="{edge}" y="{TOP - 12}" text-anchor="middle" fill="#c00">24 GiB</text>')
    names = [name for name, _ in next(iter(columns.values()))]
    shapes += [_legend(i, name, height - 40) for i, name in enumerate(names)]
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{edge + 40}" height="{height}"'
        f' font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def _bar(row: int, label: str, parts: Parts) -> str:
    y, x = TOP + row * (BAR + GAP), float(LEFT)
    shapes = [f'<text x="{LEFT - 8}" y="{y + BAR / 2 + 4}" text-anchor="end">{label}</text>']
    for colour, (name, nbytes) in zip(COLOURS, parts, strict=True):
        width = nbytes / (24 * GIB) * WIDTH
        title = f"<title>{name}: {nbytes / GIB:.2f} GiB</title>"
        shapes.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}">{title}</rect>'
        )
        x += width
    shapes.append(f'<text x="{x + 6:.1f}" y="{y + BAR / 2 + 4}">{sum(n for _, n in parts) / GIB:.1f}</text>')
    return "\n".join(shapes)


def _legend(number: int, name: str, y: int) -> str:
    x, y = 20 + number % 5 * 155, y + number // 5 * 20
    return (
        f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[number]}"/>'
        f'<text x="{x + 18}" y="{y + 11}">{name}</text>'
    )


def main() -> None:
    """Write the figure, or print the table."""
    columns = {f"{kind}, {context // 1024}K": parts_of(plan_for(kind, context)) for kind, context in CASES}
    if "--table" in sys.argv:
        sys.stdout.write(table(columns) + "\n")
    else:
        FIGURE.write_text(draw(columns))


if __name__ == "__main__":
    main()
