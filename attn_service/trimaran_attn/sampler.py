"""From logits to the next token, one request at a time, so that no request depends on its batch-mates.

Order: the grammar's mask, penalties and bias on the logits; stop ids barred below min_tokens; temperature;
top-k; top-p (of what top-k left); min-p; the draw. The draw's random number comes from a counter-based
generator (Philox) keyed by the request's seed and counted by the token's index in the output: the same seed
gives the same numbers in any batch and after any preemption.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from trimaran.wire import SamplingParams, TokenLogprob

# Sorting a vocabulary of 129,280 for the few tokens that top-p keeps is a waste: look at so many first.
NUCLEUS_GUESS = 1024


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token and, if asked for, its log probability under the model's own distribution."""

    token: int
    logprob: TokenLogprob | None


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
        self._counts: Counter[int] = Counter()
        self._seen = set(prompt_ids) if params.repetition_penalty != 1 else set()

    def draw(self, logits: Tensor, masked: Tensor | None = None) -> Drawn:
        """Draw the next token and remember it.

        Args:
            logits: [vocab] float32 on the CPU; left as they are.
            masked: the same with all that a grammar forbids at -inf; None without a grammar.

        Raises:
            ArithmeticError: penalties, bias and grammar left no finite best token.
        """
        adjusted = self._adjust(logits if masked is None else masked)
        best = adjusted.max()
        if not best.isfinite():
            raise ArithmeticError(f"the best adjusted logit is {float(best)}")
        token = int(adjusted.argmax()) if self._params.temperature == 0 else self._pick(adjusted, best)
        logprob = self._logprob(logits, token)
        self._counts[token] += 1
        if self._params.repetition_penalty != 1:
            self._seen.add(token)
        return Drawn(token, logprob)

    @property
    def n_drawn(self) -> int:
        """Tokens drawn so far."""
        return self._counts.total()

    def _adjust(self, logits: Tensor) -> Tensor:
        """Penalties, bias and barred ids; a copy unless there are none."""
        params, barred = self._params, self._bars_stop_ids()
        counted = bool(self._counts) and (params.frequency_penalty != 0 or params.presence_penalty != 0)
        if not (counted or barred or self._seen or len(self._bias_ids)):
            return logits
        logits = logits.clone()
        if self._seen:
            seen = torch.tensor(sorted(self._seen), dtype=torch.int64)
            values, penalty = logits[seen], params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if counted:
            ids = torch.tensor(list(self._counts), dtype=torch.int64)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
        if len(self._bias_ids):
            logits[self._bias_ids] += self._bias
        if barred:
            self._bar(logits)
        return logits

    def _bar(self, logits: Tensor) -> None:
        """Forbid the stop ids, unless a grammar allows nothing else."""
        stops = logits[self._stop_ids]
        logits[self._stop_ids] = -torch.inf
        if logits.max() == -torch.inf:
            logits[self._stop_ids] = stops

    def _bars_stop_ids(self) -> bool:
        return len(self._stop_ids) > 0 and self.n_drawn < self._params.min_tokens

    def _pick(self, logits: Tensor, best: Tensor) -> int:
        # In float64 a tiny temperature cannot overflow, and the sums over a large vocabulary stay exact.
        scaled = (logits - best).double() / self._params.temperature
        ids, probabilities = _keep(scaled.softmax(0), self._params)
        cumulative = probabilities.cumsum(0)
        place = int(torch.searchsorted(cumulative, self._uniform() * cumulative[-1], right=True))
        # Rounding may take the draw to the very end: that is the last token with any probability.
        place = min(place, int(torch.searchsorted(cumulative, cumulative[-1])))
        return place if ids is None else int(ids[place])

    def _uniform(self) -> float:
        bits = np.random.Philox(key=self._seed, counter=self.n_drawn)
        return float(np.random.Generator(bits).random())

    def _logprob(self, logits: Tensor, token: int) -> TokenLogprob | None:
        count = self._params.logprobs
        if count is None:
            return None
        logprobs = logits.log_softmax(0)
        values, ids = logprobs.topk(count)
        return TokenLogprob(float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _keep(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """The tokens that top-k, top-p and min-p keep, most likely first: ids and probabilities (not normalised).

    No ids: all tokens are kept, in order of id.
    """
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return None, probabilities
    kept, ids = _most_likely(probabilities, params)
    if params.top_p < 1:
        before = kept.cumsum(0) - kept
        size = (
            int((before < params.top_p * kept.sum()).sum())
            if params.top_k
            else int((before < params.top_p).sum())
        )
        kept, ids = kept[:size], ids[:size]
    if params.min_p > 0:
        size = int((kept >= params.min_p * kept[0]).sum())
        kept, ids = kept[:size], ids[:size]
    return ids, kept


def _most_likely(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Probabilities and ids, most likely first: top-k of them, or as many as top-p and min-p may need."""
    n = len(probabilities)
    if params.top_k:
        return probabilities.topk(min(params.top_k, n))
    guess = probabilities.topk(min(NUCLEUS_GUESS, n))
    covers_top_p = params.top_p < 1 and float(guess.values.sum()) >= params.top_p
    covers_min_p = params.min_p > 0 and float(guess.values[-1]) < params.min_p * float(guess.values[0])
    if covers_top_p or covers_min_p:
        return guess
    return probabilities.sort(descending=True)
