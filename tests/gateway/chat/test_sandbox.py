from __future__ import annotations

import pytest
from jinja2.exceptions import SecurityError, TemplateError
from trimaran_gateway.chat.sandbox import Budget, TemplateRefusalError, compile_template


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%999999999d' % 1 }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
    ],
)
def test_escape_and_excess_are_refused(source: str) -> None:
    with pytest.raises(SecurityError):
        compile_template(source)(messages=[{"role": "user"}])


def test_a_huge_width_is_refused_before_any_text_is_made() -> None:
    with pytest.raises(SecurityError, match="too much text"):
        compile_template("{{ 'x'.center(1000000000000000) }}")()


def test_time_is_bounded() -> None:
    with pytest.raises(SecurityError, match="too long"), Budget(seconds=-1) as budget:
        budget.charge(1)


def test_recursion_ends() -> None:
    with pytest.raises((TemplateError, RecursionError)):
        compile_template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")()


def test_loop_variables_work() -> None:
    source = "{% for x in 'abc' %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% endfor %}"
    assert compile_template(source)() == "1a,2b,3c"


def test_hugging_face_names() -> None:
    assert compile_template("{{ {'é': [1]} | tojson }}")() == '{"é": [1]}'
    assert compile_template("{{ strftime_now('%Y') }}")().isdigit()
    assert compile_template("{% generation %}x{% endgeneration %}")() == "x"
    assert compile_template("{% for i in range(9) %}{% break %}{% endfor %}ok")() == "ok"
    with pytest.raises(TemplateRefusalError, match="no tools"):
        compile_template("{{ raise_exception('no tools') }}")()
