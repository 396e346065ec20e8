"""The training loop: a wall-clock budget, checkpoints that can be resumed, a log of held-out scores."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from .batches import Batch, batches_of, random_batch
from .model import DemoModel, ModelConfig, MoE
from .optim import make_optimisers
from .samples import Sample
from .tasks import held_out


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, how often to save."""

    minutes: float = 75.0
    tokens_per_step: int = 2048
    muon_lr: float = 3e-3
    adam_lr: float = 1.5e-3
    warmup: float = 0.01  # share of the budget
    decay_from: float = 0.4  # share of the budget after which the rate falls to zero
    bias_rate: float = 2e-3  # step of the gates' selection bias
    save_every: float = 240.0  # seconds
    seed: int = 7


@dataclass
class Progress:
    """What a resumed run continues from."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


def rate_at(progress: float, config: TrainConfig) -> float:
    """The learning rate's factor: a short warm-up, a plateau, then a fall to zero that starts steep."""
    if progress < config.warmup:
        return max(progress / config.warmup, 0.02)
    left = min(1.0, max(0.0, (1 - progress) / (1 - config.decay_from)))
    return float(left**1.5)


def loss_of(model: DemoModel, batch: Batch) -> Tensor:
    """Mean weighted cross-entropy."""
    wanted = batch.weights.nonzero().squeeze(1)
    losses = cross_entropy(model(batch.groups, wanted), batch.targets[wanted], reduction="none")
    weights = batch.weights[wanted]
    return (losses * weights).sum() / weights.sum()


def balance_experts(model: DemoModel, rate: float) -> None:
    """Auxiliary-loss-free balancing (DeepSeek-V3, 2.1.2): overloaded experts lose bias, the others gain."""
    for layer in model.layers:
        if isinstance(layer.mlp, MoE) and layer.mlp.load is not None:
            load = layer.mlp.load.float()
            layer.mlp.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)


@torch.no_grad()
def teacher_forced_scores(model: DemoModel, tokenizer: Tokenizer, samples: list[Sample]) -> dict[str, float]:
    """Per task, the share of samples whose every completion token is the model's first choice.

    The completions are deterministic, so this is what greedy decoding would score, at one pass each.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        batch = batches_of([sample], tokenizer)
        wanted = (batch.weights == 1.0).nonzero().squeeze(1)
        guesses = model(batch.groups, wanted).argmax(-1)
        hits[sample.task].append(bool((guesses == batch.targets[wanted]).all()))
    return {task: sum(h) / len(h) for task, h in hits.items()}


class Trainer:
    """Owns the model, the optimisers and the run's folder."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, config: TrainConfig, model_config: ModelConfig
    ) -> None:
        torch.manual_seed(config.seed)
        self.folder, self.tokenizer, self.config = folder, tokenizer, config
        self.model = DemoModel(model_config)
        self.optimisers = make_optimisers(self.model, config.muon_lr, config.adam_lr)
        self.base_rates = [config.muon_lr, config.adam_lr]
        self.progress = Progress()
        self.samples = held_out()
        self.checkpoint = folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self._load()

    def run(self) -> DemoModel:
        """Train until the budget is spent; saves and scores on the way and at the end."""
        last_save = time.monotonic()
        started = last_save - self.progress.seconds
        running: float | None = None
        while (done := self.progress.seconds / (60 * self.config.minutes)) < 1:
            loss = self._step(done)
            self.progress.seconds = time.monotonic() - started
            running = loss if running is None else 0.98 * running + 0.02 * loss
            if self.progress.step % 50 == 0:
                self._log(loss=round(running, 4))
            if time.monotonic() - last_save > self.config.save_every:
                self._save()
                last_save = time.monotonic()
        self._save()
        return self.model

    def _step(self, done: float) -> float:
        rng = Random(f"{self.config.seed}:{self.progress.step}")
        batch = random_batch(rng, self.tokenizer, done, self.config.tokens_per_step)
        for optimiser, base in zip(self.optimisers, self.base_rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * rate_at(done, self.config)
            optimiser.zero_grad(set_to_none=True)
        loss = loss_of(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        balance_experts(self.model, self.config.bias_rate * rate_at(done, self.config))
        self.progress.step += 1
        self.progress.tokens += sum(g.numel() for g in batch.groups)
        return loss.item()

    def _log(self, **values: Any) -> None:
        line = {**asdict(self.progress), **values}
        line["seconds"] = round(self.progress.seconds)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        """Write the checkpoint beside the old one, then rename, so that a reader never sees half a file."""
        state = {
            "model_config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "progress": asdict(self.progress),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        scores = teacher_forced_scores(self.model, self.tokenizer, self.samples)
        self._log(scores={k: round(v, 3) for k, v in scores.items()})

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(**state["progress"])


def load_model(checkpoint: Path) -> DemoModel:
    """The model of a checkpoint, for evaluation and export."""
    state = torch.load(checkpoint, weights_only=True)
    model = DemoModel(ModelConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    return model.eval()
