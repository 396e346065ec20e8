"""Grammars from text to matchers, on a thread of their own: the engine's steps go on meanwhile."""

from __future__ import annotations

import re
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits
from trimaran.errors import RequestError
from trimaran.telemetry import Log
from trimaran.wire import LarkGrammar

from trimaran_attn.grammar.vocabulary import TokenTable, make_tokenizer

MAX_GRAMMAR_CHARS = 256 * 1024
MAX_MESSAGE_CHARS = 500
MAX_STUCK = 2
"""Threads that may be lost to grammars without end; they cannot be stopped."""

KEPT_GRAMMARS = 16
"""Compiled grammars kept for the next request with the same text, as agents send them turn after turn."""

NO_FORCING = '%llguidance {"no_forcing": true}\n'
"""Lets the model spell what is certain in tokens of its own choice: llguidance would have to know the BPE to
force the usual ones."""

_EXCERPT = re.compile(r"^\s*(\d+ )?[|^].*$", re.MULTILINE)
_log = Log(__name__)
_PLACE = re.compile(r"^at \d+\(\d+\): ")


class GrammarCompiler:
    """Compiles grammars for one vocabulary; the last ones are remembered.

    Args:
        table: the vocabulary; one of 129,280 tokens takes half a second.
        limits: bounds of llguidance's work; None takes `default_limits`.
    """

    def __init__(self, table: TokenTable, limits: LLParserLimits | None = None) -> None:
        self.table = table
        self._tokenizer = make_tokenizer(table)
        self._limits = limits or default_limits()
        self._thread = _new_thread()
        self._stuck = 0
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def check(self, grammar: LarkGrammar) -> None:
        """Refuse what cannot even be compiled.

        Raises:
            RequestError: the grammar is too long, or earlier ones never came to an end.
        """
        if self._stuck >= MAX_STUCK:
            raise RequestError(
                f"grammar: {self._stuck} grammars never ended compiling, no more are taken",
                code="unavailable",
                param="grammar",
            )
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise bad_grammar(f"it has {len(grammar.text)} characters, {MAX_GRAMMAR_CHARS} at most are taken")

    def start(self, grammar: LarkGrammar) -> Future[LLMatcher]:
        """Begin to compile; the result is a matcher at its start, or a RequestError with the reason."""
        return self._thread.submit(self._compile, grammar.text)

    def give_up(self, future: Future[LLMatcher]) -> None:
        """A compilation took too long: if it is the one that runs, others go on in a thread of their own."""
        if future.running():
            _log.error("a grammar does not end compiling, its thread is given up", given_up=self._stuck + 1)
            self._stuck += 1
            stuck, self._thread = self._thread, _new_thread()
            stuck.shutdown(wait=False)

    def _compile(self, text: str) -> LLMatcher:
        kept = self._kept.pop(text, None)
        matcher = kept or LLMatcher(self._tokenizer, NO_FORCING + text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise bad_grammar(matcher.get_error())
        self._kept[text] = matcher
        if len(self._kept) > KEPT_GRAMMARS:
            self._kept.popitem(last=False)
        return matcher.deep_copy()


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")


def bad_grammar(problem: str) -> RequestError:
    """The refusal of a grammar, one line without the excerpt of its text that llguidance adds."""
    line = " ".join(_EXCERPT.sub("", _PLACE.sub("", problem)).split())
    return RequestError(f"grammar: {line[:MAX_MESSAGE_CHARS]}", code="invalid_request", param="grammar")


def default_limits() -> LLParserLimits:
    """About 20 ms of lexer work to compile, 15 ms a step, 50 MB of states; beyond, the request fails."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=30_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
