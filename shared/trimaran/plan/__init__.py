"""What of a model goes where, whether it fits, and how fast it can decode at best.

A pure function of the model's dimensions and tensor directory, of the machine, and of the configuration. The
services ask it before they load; `trimaran plan` prints it.

    weights     what the model's parts take, in the form that each place holds them in
    cache       tokens and bytes of the latent cache
    workspace   what a step needs besides
    devices     which GPUs there are to plan for
    placement   which layers go to which of them
    report      the plan, its budgets and its problems
    make        all of it together
"""

from trimaran.plan.make import check_plan, make_plan
from trimaran.plan.placement import parse_layers, place_layers
from trimaran.plan.report import Bandwidth, Budget, GpuShare, Item, Place, Plan, Speed
from trimaran.plan.sizes import (
    GPU_PART_TOKENS,
    GPU_RESERVE,
    PAGE_TOKENS,
    RAM_RESERVE,
    SMALLEST_CONTEXT,
)

__all__ = [
    "GPU_PART_TOKENS",
    "GPU_RESERVE",
    "PAGE_TOKENS",
    "RAM_RESERVE",
    "SMALLEST_CONTEXT",
    "Bandwidth",
    "Budget",
    "GpuShare",
    "Item",
    "Place",
    "Plan",
    "Speed",
    "check_plan",
    "make_plan",
    "parse_layers",
    "place_layers",
]
