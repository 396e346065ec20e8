"""Builds the demo model: tokeniser, training, evaluation, export.

    python examples/demo_model/build.py --minutes 120

Everything is written to the run's folder; a second call with the same folder goes on where the first
stopped. `--only` runs a single stage on what is already there. The bundled file is replaced only by a model
that reaches what the project's tests ask of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from trimaran_demo.evaluate import LEAST, missed, scores, write_held_out
from trimaran_demo.export import read_gguf, write_gguf
from trimaran_demo.model import DemoModel, ModelConfig
from trimaran_demo.tasks import held_out
from trimaran_demo.tokenizer import load_tokenizer
from trimaran_demo.train import TrainConfig, Trainer, load_model, teacher_forced_scores

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "shared" / "trimaran" / "data" / "demo.gguf"
STAGES = ("train", "export", "evaluate")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the demo model.")
    parser.add_argument("--minutes", type=float, default=120.0, help="wall-clock budget of the training")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's own choice")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "demo_model", help="checkpoints and log"
    )
    parser.add_argument("--output", type=Path, default=BUNDLED)
    parser.add_argument("--held-out", type=Path, default=ROOT / "tests" / "data" / "demo_held_out.jsonl")
    parser.add_argument("--only", choices=STAGES, help="run one stage")
    return parser.parse_args()


def report(title: str, values: dict[str, float]) -> None:
    """Scores on one line."""
    print(title, json.dumps({task: round(score, 3) for task, score in values.items()}), flush=True)


def require_learnt(model: DemoModel, tokenizer: Tokenizer) -> None:
    """End here with a model that is worse than the tests allow, as after too little training."""
    samples = [sample for sample in held_out() if sample.task in LEAST]
    if problem := missed(teacher_forced_scores(model, tokenizer, samples)):
        remedy = "train for longer (--minutes), or write it elsewhere (--output)"
        sys.exit(f"error: {BUNDLED.name} stays as it is: {problem} ({remedy})")


def main() -> None:
    """Run the stages asked for."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = (args.only,) if args.only else STAGES
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer, checkpoint = load_tokenizer(args.folder / "tokenizer.json"), args.folder / "checkpoint.pt"
    if "train" in stages:
        Trainer(args.folder, tokenizer, TrainConfig(minutes=args.minutes), ModelConfig()).run()
    if "export" in stages:
        model = load_model(checkpoint)
        if args.output.resolve() == BUNDLED:
            require_learnt(model, tokenizer)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(args.output, model, tokenizer)
        write_held_out(args.held_out, held_out())
    if "evaluate" in stages:
        report("checkpoint:", scores(load_model(checkpoint), tokenizer, held_out()))
        report("quantised:", scores(read_gguf(args.output), tokenizer, held_out()))


if __name__ == "__main__":
    main()
