import json
import re
from random import Random

import pytest
from trimaran_demo.samples import Sample, is_held_out
from trimaran_demo.tasks import HELD_OUT_TASKS, draw, held_out
from trimaran_demo.tasks.arithmetic import REASONS, arithmetic, long_multiplication, result
from trimaran_demo.tasks.lists import reason_sort, sort
from trimaran_demo.tasks.passkey import passkey
from trimaran_demo.tasks.structured import to_json
from trimaran_demo.tasks.tools import CALLS_BEGIN, tool_call
from trimaran_demo.template import render_prompt

STEP = re.compile(r"(?<![\d+*-])(\d+(?:[+*-]\d+)+)=(-?\d+)(?![\d*])")


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_every_step_of_the_arithmetic_is_true_and_ends_in_the_result(op: str) -> None:
    for a in range(100):
        for b in (*range(10), *range(10, 100, 7)):
            text = REASONS[op](a, b)
            for left, right in STEP.findall(text):
                assert eval(left) == int(right), text
            assert re.findall(r"(?<=[ =])-?\d+", text)[-1] == str(result(op, a, b)), text


def test_arithmetic_phrases_name_both_numbers() -> None:
    rng = Random(0)
    for _ in range(500):
        sample = arithmetic(rng)
        _, low, high = sample.key.split(":") if sample.key else ("", "0", "0")
        question = sample.messages[0]["content"]
        assert not sample.key or {low, high} <= set(re.findall(r"\d+", question))


def test_sorting_ends_with_everything_taken() -> None:
    assert reason_sort([31, 7, 22]) == "31 7 22: 7\n31 22: 22\n31: 31"
    sample = sort(Random(1))
    numbers = [int(n) for n in sample.answer.split(", ")]
    assert numbers == sorted(numbers)


def test_the_pass_key_stands_in_the_prompt() -> None:
    for seed in range(50):
        sample = passkey(Random(seed))
        assert sample.answer in sample.messages[0]["content"]


def test_json_answers_parse_and_keep_the_text_s_values() -> None:
    for seed in range(50):
        sample = to_json(Random(seed))
        for value in json.loads(sample.answer).values():
            assert str(value) in sample.messages[0]["content"]


def test_tool_calls_carry_json_arguments_and_offered_names() -> None:
    for seed in range(50):
        sample = tool_call(Random(seed))
        if sample.answer.startswith(CALLS_BEGIN):
            name = re.findall(r"<｜tool▁sep｜>(\w+)\n", sample.answer)[0]
            arguments = re.findall(r"```json\n(.*)\n```", sample.answer)[0]
            assert f'"name": "{name}"' in sample.messages[0]["content"]
            assert json.loads(arguments)


def test_training_never_draws_a_held_out_problem() -> None:
    keys = {s.key for s in held_out()}
    asked = {render_prompt(s) for s in held_out()}
    rng = Random(5)
    for step in range(1000):
        sample = draw(rng, step / 1000)
        assert sample.key not in keys
        assert not is_held_out(sample.key)
        assert render_prompt(sample) not in asked


def test_long_products_show_no_held_out_partial_product() -> None:
    rng = Random(6)
    for _ in range(500):
        text = long_multiplication(rng).reasoning or ""
        for a, b in re.findall(r"(\d\d)\*(\d):", text):
            assert not is_held_out(f"mul:{b}:{a}")


def test_the_held_out_set_is_stable_and_complete() -> None:
    samples = held_out()
    assert samples == held_out()
    counts = {task: sum(s.task == task for s in samples) for task in HELD_OUT_TASKS}
    assert counts == {task: size for task, (_, size) in HELD_OUT_TASKS.items()}
    assert all(isinstance(s, Sample) and s.key for s in samples)
