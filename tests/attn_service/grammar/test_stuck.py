"""Grammars that never end compiling, and matchers that break, harm nobody else."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from trimaran.errors import RequestError
from trimaran.wire import LarkGrammar
from trimaran_attn.grammar.compiler import MAX_STUCK, GrammarCompiler
from trimaran_attn.grammar.constraints import COMPILE_TIMEOUT_S, Constraints


def test_a_grammar_without_end_fails_its_request_and_others_compile_on(
    lab: Any, table: Any, asker: Any, monkeypatch: Any
) -> None:
    compiler, now, end = GrammarCompiler(table), [0.0], Event()
    compile_text = compiler._compile
    monkeypatch.setattr(
        compiler, "_compile", lambda text: end.wait() if "slow" in text else compile_text(text)
    )
    stuck = type(asker)(lab.engine(Constraints(compiler, lambda: now[0])), table)
    try:
        stuck.submit("slow", 'start: "slow"')
        for _ in range(5):
            stuck.step()
        assert stuck.engine.is_held
        (request,) = stuck.engine.scheduler.running
        assert request.n_pending == 1, "nothing is computed again and again meanwhile"
        now[0] += COMPILE_TIMEOUT_S
        stuck.step()
        assert stuck.failures["slow"].code == "invalid_request"
        assert "did not compile" in stuck.failures["slow"].message
        assert not stuck.engine.has_work
        stuck.submit("fast", 'start: "fast"')
        stuck.run()
        assert stuck.text("fast") == "fast"
    finally:
        end.set()


def test_after_some_grammars_without_end_no_more_are_taken(table: Any, monkeypatch: Any) -> None:
    compiler, end = GrammarCompiler(table), Event()
    begun = [Event() for _ in range(MAX_STUCK)]

    def stick(text: str) -> None:
        begun[int(text)].set()
        end.wait()

    monkeypatch.setattr(compiler, "_compile", stick)
    try:
        for number in range(MAX_STUCK):
            grammar = LarkGrammar(text=str(number))
            compiler.check(grammar)
            future = compiler.start(grammar)
            assert begun[number].wait(30)
            compiler.give_up(future)
        with pytest.raises(RequestError, match="never ended"):
            compiler.check(LarkGrammar(text="x"))
    finally:
        end.set()


def test_a_matcher_that_breaks_fails_its_request_only(asker: Any, monkeypatch: Any) -> None:
    calls = []

    def fill(matcher: LLMatcher, words: Any, row: int) -> None:
        calls.append(row)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        fill_next_token_bitmask(matcher, words, row)

    monkeypatch.setattr("trimaran_attn.grammar.constraints.fill_next_token_bitmask", fill)
    texts = {"a": "yes", "b": "fine"}
    for name, text in texts.items():
        asker.submit(name, f'start: "{text}"')
    asker.run()
    (failed,) = asker.failures
    (other,) = set(texts) - {failed}
    assert asker.failures[failed].code == "internal"
    assert asker.text(other) == texts[other]
