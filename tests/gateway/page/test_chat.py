"""Chatting with the page in a real browser."""

from __future__ import annotations

import json
from typing import Any

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


def test_an_answer_streams_in(page: Any, server: Any) -> None:
    server.answer("The sum is **42**.", pause_s=0.05)
    page.open(server.url)
    assert page.text("#state-text") == "deepseek-r1"
    page.say("What is 17 + 25?")
    page.wait_text(".answer > .prose", "The sum")
    page.wait_answer()
    assert page.text(".question .bubble") == "What is 17 + 25?"
    assert page.text(".answer > .prose strong") == "42"
    assert "3 tokens" in page.text(".answer footer")
    [body] = server.bodies
    assert body == {
        "model": "deepseek-r1",
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_reasoning_folds_away_and_is_not_sent_again(page: Any, server: Any) -> None:
    server.think("First I add.", "42", pause_s=0.4)
    page.open(server.url)
    page.say("17 + 25?")
    page.wait_text(".reasoning summary", "Thinking")
    page.wait_answer()
    assert page.text(".reasoning summary").startswith("Thought for ")
    assert not page.js("document.querySelector('.reasoning').open")
    page.click(".reasoning summary")
    assert page.text(".thoughts") == "First I add."
    page.say("Sure?")
    page.wait_answer(2)
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "42"}
    assert page.js("document.querySelector('.reasoning').open"), "what the reader chose stays"


def test_nothing_that_a_model_says_becomes_html(page: Any, server: Any) -> None:
    evil = (
        "<img src=x onerror=\"document.title='gone'\"> <script>document.title='gone'</script> "
        "[a](javascript:document.title='gone') ![p](data:text/html,x) [ok](https://example.org/a)"
    )
    server.think(evil, evil)
    page.open(server.url)
    page.say("<b>hello</b>")
    page.wait_answer()
    assert page.js("document.title") == "Trimaran"
    assert page.text(".bubble") == "<b>hello</b>"
    assert page.js("document.querySelectorAll('#messages :is(img, script, b, iframe)').length") == 0
    links = page.js("[...document.querySelectorAll('.answer > .prose a')].map((a) => [a.href, a.rel])")
    assert links == [["https://example.org/a", "noopener noreferrer nofollow"]]


def test_a_tool_call_is_shown_and_its_result_goes_back(page: Any, server: Any) -> None:
    server.call_tool("get_weather", '{"city": "Aarhus"}')
    server.answer("It rains.")
    page.open(server.url)
    page.click("#open-settings")
    page.click("#settings [name=tools]")
    page.type(json.dumps(TOOLS))
    page.say("Weather in Aarhus?")
    page.wait_answer()
    assert server.bodies[0]["tools"] == TOOLS
    assert page.js("document.querySelector('.call h3').textContent") == "Tool call get_weather"
    assert json.loads(page.text(".call pre")) == {"city": "Aarhus"}
    page.click(".call textarea")
    page.type("rain, 9 °C")
    page.click(".calls .strong")
    page.wait_answer(2)
    assert page.text(".answer:last-child > .prose") == "It rains."
    assert "rain, 9 °C" in page.text(".call pre + pre")
    call, result = server.bodies[1]["messages"][1:]
    assert call["content"] is None
    assert call["tool_calls"] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Aarhus"}'},
        }
    ]
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "rain, 9 °C"}
    assert page.js("document.querySelectorAll('.calls .strong').length") == 0


def test_escape_stops_and_regenerate_asks_again(page: Any, server: Any) -> None:
    server.answer("One two three", holds=True)
    server.answer("Fine.")
    page.open(server.url)
    page.say("Count.")
    page.wait_text(".answer > .prose", "three")
    assert page.js("!document.getElementById('stop').hidden && document.getElementById('send').hidden")
    page.press("Escape")
    page.wait_answer()
    assert server.left.wait(5), "the server must see that the client left"
    assert "Stopped." in page.text(".answer footer")
    page.click('.answer [title="Regenerate"]')
    page.wait_text(".answer > .prose", "Fine.")
    page.wait_answer()
    assert server.bodies[0] == server.bodies[1]
    assert page.js("document.querySelectorAll('#messages > li').length") == 2


def test_the_stop_button_stops(page: Any, server: Any, reply_maker: Any) -> None:
    server.replies.append(reply_maker(holds=True))
    page.open(server.url)
    page.say("Wait.")
    page.wait_text(".waiting", "Reading the prompt")
    page.click("#stop")
    page.wait_answer()
    assert server.left.wait(5)
    assert page.js("document.activeElement.id") == "prompt"


def test_editing_replaces_what_follows(page: Any, server: Any) -> None:
    for text in ("one", "two", "three"):
        server.answer(text)
    page.open(server.url)
    page.say("first")
    page.wait_answer()
    page.say("second")
    page.wait_answer(2)
    page.click('.question [title="Edit message"]')
    assert page.js("document.getElementById('prompt').value") == "first"
    assert "will be replaced" in page.text("#editing")
    page.press("Escape")
    assert page.js("document.getElementById('editing').hidden")
    page.click('.question [title="Edit message"]')
    page.type(" again")
    page.press("Enter")
    page.wait_text(".answer > .prose", "three")
    page.wait_answer()
    assert server.bodies[2]["messages"] == [{"role": "user", "content": "first again"}]


def test_the_conversation_stays_on_the_device(page: Any, server: Any) -> None:
    server.answer("Remember **me**.")
    server.answer("and this, cut", holds=True)
    page.open(server.url)
    page.say("hello")
    page.wait_answer()
    page.say("more")
    page.wait_text(".answer:last-child > .prose", "cut")
    page.open(server.url)
    page.wait_answer(2)
    assert page.text(".answer > .prose strong") == "me"
    assert "Stopped." in page.text(".answer:last-child footer")
    page.click("#new")
    assert page.js("document.querySelectorAll('#messages > li').length") == 0
    assert page.js("document.getElementById('welcome').hidden") is False
    page.click(".toast .link")
    assert page.js("document.querySelectorAll('#messages > li').length") == 4
    page.click("#new")
    page.open(server.url)
    assert page.js("document.querySelectorAll('#messages > li').length") == 0


def test_what_an_older_page_kept_does_no_harm(page: Any, server: Any) -> None:
    kept = [{"role": "user"}, {"role": "assistant", "content": 3}, None, {"role": "user", "content": "good"}]
    page.call("Page.navigate", url=f"{server.url}internal/live")
    page.wait("location.pathname === '/internal/live'")
    page.js(f"localStorage.setItem('trimaran.conversation', {json.dumps(json.dumps(kept))})")
    page.js("localStorage.setItem('trimaran.settings', '[not json')")
    page.open(server.url)
    assert page.text("#messages > li") == "You\ngood"
    assert page.js("document.querySelectorAll('#messages > li').length") == 1


def test_parameters_are_sent_when_they_are_set(page: Any, server: Any) -> None:
    page.open(server.url)
    page.click("#open-settings")
    for name, value in (("system", "Be brief."), ("temperature", "0.5"), ("top_k", "40"), ("seed", "7")):
        page.click(f"#settings [name={name}]")
        page.type(value)
    page.js("document.querySelector('[name=thinking]').value = 'off'")
    page.say("hi")
    page.wait_answer()
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["top_k"], body["seed"]) == (0.5, 40, 7)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"top_p", "min_p", "max_tokens", "tools"} & set(body)
    page.open(server.url)
    assert page.js("document.querySelector('[name=system]').value") == "Be brief."
    page.click("#open-settings")
    page.click("#settings [type=reset]")
    page.press("Escape")
    page.click("#new")
    page.say("hi")
    page.wait_answer()
    assert set(server.bodies[1]) == {"model", "messages", "stream", "stream_options"}


def test_bad_parameters_are_refused_before_they_are_sent(page: Any, server: Any) -> None:
    page.open(server.url)
    page.click("#open-settings")
    page.click("#settings [name=tools]")
    page.type('[{"type":')
    page.say("hi")
    page.wait_text(".toast.error", "Tools")
    page.click("#settings [type=reset]")
    page.click("#settings [name=top_p]")
    page.type("1.5")
    page.press("Enter")
    page.say("")
    page.wait_text(".toast.error:last-child", "Top p")
    assert server.bodies == []
    assert page.js("document.getElementById('prompt').value") == "hi", "the message is not lost"


def test_a_refusal_is_shown_in_the_servers_words(page: Any, server: Any) -> None:
    words = "This model's maximum context length is 4096 tokens. However, your prompt has 5000 tokens."
    server.answer("", status=400, error=words)
    server.answer("Half an", error="the engine went away")
    page.open(server.url)
    page.say("long")
    page.wait_text(".answer .problem", "maximum context length is 4096")
    assert page.text(".answer .problem") == words
    assert page.js("document.querySelector('.toast')") is None, "it is said once"
    page.click('.answer [title="Regenerate"]')
    page.wait_text(".answer .problem", "the engine went away")
    assert page.text(".answer > .prose") == "Half an"


def test_a_server_that_is_gone_is_named(page: Any, server: Any) -> None:
    page.open(server.url)
    page.wait_text("#state-text", "deepseek-r1")
    server.close()
    page.say("hello")
    page.wait_text(".answer .problem", "cannot be reached")
    page.wait_text("#state-text", "not reachable")


def test_a_key_is_asked_for_and_used(page: Any, server: Any) -> None:
    server.key = "secret"
    page.open(server.url)
    page.say("hello")
    page.wait("document.getElementById('key-dialog').open")
    page.type("wrong")
    page.press("Enter")
    page.wait_text("#key-reason", "may be wrong")
    page.wait("document.getElementById('key-dialog').open")
    page.type("secret")
    page.press("Enter")
    page.wait_answer()
    assert page.text(".answer > .prose") == "Yes."
    page.say("again")
    page.wait_answer(2)
    assert page.js("JSON.stringify(localStorage).includes('secret')") is False


def test_without_a_key_the_refusal_is_shown(page: Any, server: Any) -> None:
    server.key = "secret"
    page.open(server.url)
    page.say("hello")
    page.wait("document.getElementById('key-dialog').open")
    page.press("Escape")
    page.wait_text(".answer .problem", "no valid API key")


def test_a_long_answer_is_followed_until_the_reader_scrolls_away(page: Any, server: Any) -> None:
    server.answer("\n\n".join(f"line {number}" for number in range(80)).replace(" ", " "), pause_s=0.01)
    page.open(server.url)
    page.say("go")
    page.wait_answer()
    bottom = "scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight"
    assert page.js(f"(() => {{ const scroll = document.getElementById('scroll'); return {bottom}; }})()") < 2
    server.answer("a b c d e f " * 5, pause_s=0.02)
    page.click("#prompt")
    page.type("more")
    page.press("Enter")
    page.wait_text(".answer:last-child > .prose", "a b")
    page.js("document.getElementById('scroll').scrollTop = 0")
    page.wait_answer(2)
    assert page.js("document.getElementById('scroll').scrollTop") == 0


def test_a_wide_table_scrolls_and_keeps_its_words_whole(page: Any, server: Any) -> None:
    words = ["algorithm", "comparisons", "insertion", "standard-libraries"]
    server.answer(f"|{'|'.join(words)}|\n|---|---|---|---|\n|{'|'.join(['many words in one cell'] * 4)}|\n")
    page.open(server.url, size=(360, 640), touch=True)
    page.say("a table, please")
    page.wait_answer()
    lines = page.js(
        "[...document.querySelectorAll('.table th')].map((cell) => { const range = document.createRange(); "
        "range.selectNodeContents(cell); return range.getClientRects().length; })"
    )
    assert lines[:3] == [1, 1, 1]
    assert page.js(
        "(() => { const t = document.querySelector('.table'); return t.scrollWidth > t.clientWidth })()"
    )
    assert page.js("document.documentElement.scrollWidth") == 360
