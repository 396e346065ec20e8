"""The grammars of the requests in the engine: who may draw what next, and who is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor
from trimaran.errors import RequestError
from trimaran.telemetry import Log
from trimaran.wire import LarkGrammar

from trimaran_attn.grammar.compiler import GrammarCompiler, bad_grammar

COMPILE_TIMEOUT_S = 60.0
"""A grammar that compiles for longer, its wait for others included, fails its request."""

MASK_FAILED = "grammar: its next tokens could not be found, see the attention service's log"
COMPILER_FAILED = "grammar: it could not be compiled, see the attention service's log"
_log = Log(__name__)


@dataclass(frozen=True)
class Compilation:
    """A grammar that is being compiled, and since when it should be there."""

    future: Future[LLMatcher]
    overdue_at: float


class Constraints:
    """Follows each constrained request's output through its grammar.

    A matcher sees each token once, when it is drawn: a request that is preempted and computed again does not
    draw its old tokens again.

    Args:
        compiler: for the model's vocabulary.
        clock: seconds, monotonic.
    """

    def __init__(self, compiler: GrammarCompiler, clock: Callable[[], float] = time.monotonic) -> None:
        self._compiler = compiler
        self._clock = clock
        self._compiling: dict[str, Compilation] = {}
        self._matchers: dict[str, LLMatcher] = {}

    def __contains__(self, request_id: object) -> bool:
        """Whether a request has a grammar."""
        return request_id in self._compiling or request_id in self._matchers

    @property
    def end_ids(self) -> Sequence[int]:
        """Tokens that end a generation wherever its grammar may end."""
        return self._compiler.table.end_ids

    def check(self, grammar: LarkGrammar) -> None:
        """Refuse what cannot even be compiled.

        Raises:
            RequestError: the grammar is too long.
        """
        self._compiler.check(grammar)

    def add(self, request_id: str, grammar: LarkGrammar) -> None:
        """Constrain a request by a grammar that was checked; it compiles in the background."""
        overdue_at = self._clock() + COMPILE_TIMEOUT_S
        self._compiling[request_id] = Compilation(self._compiler.start(grammar), overdue_at)

    def remove(self, request_id: str) -> None:
        """Forget a request; one without a grammar is not known here."""
        compiling = self._compiling.pop(request_id, None)
        if compiling is not None:
            compiling.future.cancel()
        self._matchers.pop(request_id, None)

    def refused(self) -> dict[str, RequestError]:
        """Requests whose grammar turned out to be bad, without waiting for those that still compile."""
        errors = {key: error for key in self._done() if (error := self._settle(key)) is not None}
        now = self._clock()
        overdue = {key: c.future for key, c in self._compiling.items() if c.overdue_at <= now}
        for key, future in overdue.items():
            self.remove(key)
            self._compiler.give_up(future)
            errors[key] = bad_grammar(f"it did not compile within {COMPILE_TIMEOUT_S:.0f} s")
        return errors

    def _done(self) -> list[str]:
        return [key for key, compiling in self._compiling.items() if compiling.future.done()]

    @property
    def compiling(self) -> Collection[str]:
        """Requests that no token may be drawn for yet."""
        return [key for key, compiling in self._compiling.items() if not compiling.future.done()]

    def constrain(self, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, RequestError]]:
        """The logits of constrained requests with all that their grammars forbid at -inf.

        Args:
            rows: logits [vocab] by request id, all ready; requests without a grammar are passed over.

        Returns:
            Masked copies by request id, and the requests whose grammar failed.
        """
        failed = {key: error for key in rows if (error := self._settle(key)) is not None}
        ids = [key for key in rows if key in self._matchers]
        if not ids:
            return {}, failed
        allowed, broken = self._allowed(ids, next(iter(rows.values())).shape[-1])
        masked = torch.stack([rows[key] for key in ids]).masked_fill_(~allowed, -torch.inf)
        usable = allowed.any(-1).tolist()
        failed |= {key: self._failure(key) for key, some in zip(ids, usable, strict=True) if not some}
        failed |= broken
        return {key: row for key, row in zip(ids, masked, strict=True) if key not in failed}, failed

    def take(self, request_id: str, token: int) -> bool:
        """Book a token that was drawn from `constrain`'s logits; True: the output is complete.

        Raises:
            RequestError: the grammar does not take the token.
        """
        matcher = self._matchers.get(request_id)
        if matcher is None:
            return False
        if not matcher.consume_token(token):
            raise self._failure(request_id)
        return matcher.is_stopped()

    def _settle(self, request_id: str) -> RequestError | None:
        """Take a request's compiled grammar over, if it has one; what went wrong instead, if anything did."""
        compiling = self._compiling.pop(request_id, None)
        if compiling is None:
            return None
        try:
            self._matchers[request_id] = compiling.future.result()
        except RequestError as error:
            return error
        except Exception:
            # A fault of ours or of llguidance is the end of this request, not of its batch-mates.
            _log.exception("grammar failed to compile", request=request_id)
            return RequestError(COMPILER_FAILED, code="internal", param="grammar")
        return None

    def _allowed(self, ids: Sequence[str], vocab_size: int) -> tuple[Tensor, dict[str, RequestError]]:
        """[len(ids), vocab_size] bool, and whose matcher broke; one that fails or breaks allows nothing."""
        words = allocate_token_bitmask(len(ids), len(self._compiler.table.tokens))
        broken = {}
        for row, key in enumerate(ids):
            try:
                fill_next_token_bitmask(self._matchers[key], words, row)
            except Exception:
                _log.exception("grammar failed", request=key)
                broken[key] = RequestError(MASK_FAILED, code="internal", param="grammar")
            if key in broken or self._matchers[key].is_error():
                words[row] = 0  # llguidance allows the end after an error, which would cut the output
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
        allowed = torch.zeros(len(ids), vocab_size, dtype=torch.bool)
        allowed[:, : bits.shape[1]] = torch.from_numpy(bits).bool()
        return allowed, broken

    def _failure(self, request_id: str) -> RequestError:
        problem = self._matchers[request_id].get_error()
        return bad_grammar(problem or "no token of the model's vocabulary can follow")
