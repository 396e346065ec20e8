"""What it takes to draw a request's next token elsewhere than in its sampler. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draw:
    """The fields of `SamplingParams` that decide, and the random number.

    Attributes:
        temperature: 0 takes the likeliest token.
        share: of the kept tokens' probability, at least 0 and below 1; 0 where temperature is.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    share: float = 0.0
