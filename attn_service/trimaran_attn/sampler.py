"""From logits to the next token, one request at a time, so that no request depends on its batch-mates.

Order: the grammar's mask, penalties and bias on the logits; stop ids barred below min_tokens; temperature;
top-k; top-p (of what top-k left); min-p; the draw. The draw's random number comes from a counter-based
generator (Philox) keyed by the request's seed and counted by the token's index in the output: the same seed
gives the same numbers in any batch and after any preemption.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from trimaran.wire import SamplingParams, TokenLogprob

from trimaran_attn.draws import Draw
from trimaran_attn.nucleus import draw_place, keep, largest

LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""Below, a temperature is 0: float32 could not divide by it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token and, if asked for, its log probability under the model's own distribution."""

    token: int
    logprob: TokenLogprob | None


class _History:
    """What occurred so far, by token: as large as the vocabulary, so that a long text costs no more.

    Args:
        vocab_size: tokens.
        prompt_ids: count for the repetition penalty only.
    """

    def __init__(self, vocab_size: int, prompt_ids: Sequence[int]) -> None:
        self._counts = torch.zeros(vocab_size)
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen[torch.tensor(prompt_ids, dtype=torch.int64)] = True

    def add(self, token: int) -> None:
        """A token was drawn."""
        self._counts[token] += 1
        self._seen[token] = True

    def penalise(self, logits: Tensor, params: SamplingParams) -> None:
        """Apply the three penalties in place."""
        if params.repetition_penalty != 1:
            penalty = params.repetition_penalty
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            torch.where(self._seen, penalised, logits, out=logits)
        if params.frequency_penalty:
            logits.sub_(self._counts, alpha=params.frequency_penalty)
        if params.presence_penalty:
            logits.sub_(self._counts.clamp(max=1), alpha=params.presence_penalty)


def _penalises(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0


class Sampler:
    """Draws the tokens of one request.

    Args:
        params: checked by `check_sampling`.
        prompt_ids: for the repetition penalty.
        stop_ids: not drawn before `params.min_tokens` tokens.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], stop_ids: Iterable[int]) -> None:
        self._params = params
        self._stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64)
        self._bias_ids = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self._seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        self._is_greedy = params.temperature < LEAST_TEMPERATURE
        self._prompt_ids = prompt_ids
        self._n_drawn = 0
        self._history: _History | None = None

    def draw(self, logits: Tensor, masked: Tensor | None = None) -> Drawn:
        """Draw the next token and remember it.

        Args:
            logits: [vocab] float32 on the CPU; left as they are.
            masked: the same with all that a grammar forbids at -inf; None without a grammar.

        Raises:
            ArithmeticError: penalties, bias and grammar left no finite best token.
        """
        adjusted = self._adjust(logits if masked is None else masked)
        values = adjusted.numpy()
        token = int(values.argmax())  # far faster than torch's
        best = float(values[token])
        if not math.isfinite(best):
            raise ArithmeticError(f"the best adjusted logit is {best}")
        if not self._is_greedy:
            token = self._pick(adjusted, best)
        logprob = self._logprob(logits, token)
        self._n_drawn += 1
        if self._history is not None:
            self._history.add(token)
        return Drawn(token, logprob)

    def next_draw(self) -> Draw | None:
        """What `draw` goes by, for whoever draws in its place; None if that takes more than the logits."""
        params = self._params
        if params.logprobs is not None or self._adjusts():
            return None
        if self._is_greedy:
            return Draw(0.0)
        return Draw(params.temperature, params.top_k, params.top_p, params.min_p, self._uniform())

    def accept(self, token: int) -> Drawn:
        """Remember a token that was drawn by `next_draw`."""
        self._n_drawn += 1
        return Drawn(token, None)

    @property
    def n_drawn(self) -> int:
        """Tokens drawn so far."""
        return self._n_drawn

    def _adjust(self, logits: Tensor) -> Tensor:
        """Penalties, bias and barred ids; a copy unless there are none."""
        if not self._adjusts():
            return logits
        logits = logits.clone()
        if _penalises(self._params):
            if self._history is None:
                self._history = _History(len(logits), self._prompt_ids)
            self._history.penalise(logits, self._params)
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
        if self._bars_stop_ids():
            self._bar(logits)
        return logits

    def _adjusts(self) -> bool:
        return _penalises(self._params) or self._bars_stop_ids() or len(self._bias_ids) > 0

    def _bar(self, logits: Tensor) -> None:
        """Forbid the stop ids, unless a grammar allows nothing else."""
        stops = logits[self._stop_ids]
        logits[self._stop_ids] = -torch.inf
        if logits.max() == -torch.inf:
            logits[self._stop_ids] = stops

    def _bars_stop_ids(self) -> bool:
        return len(self._stop_ids) > 0 and self.n_drawn < self._params.min_tokens

    def _pick(self, logits: Tensor, best: float) -> int:
        weights = (logits - best).div_(self._params.temperature).exp_()
        ids, kept = keep(weights, self._params)
        place = draw_place(kept.numpy(), self._uniform())
        return place if ids is None else int(ids[place])

    def _uniform(self) -> float:
        bits = np.random.Philox(key=self._seed, counter=self.n_drawn)
        return float(np.random.Generator(bits).random())

    def _logprob(self, logits: Tensor, token: int) -> TokenLogprob | None:
        count = self._params.logprobs
        if count is None:
            return None
        normaliser = float(logits.logsumexp(0))
        ids, values = largest(logits, float(logits.max()), count)
        top = tuple(zip(ids.tolist(), (values - normaliser).tolist(), strict=True))
        return TokenLogprob(float(logits[token]) - normaliser, top)
