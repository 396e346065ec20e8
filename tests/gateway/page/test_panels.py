"""The live panel, the keyboard, small screens and colours, in a real browser."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client import Histogram
from trimaran.crashes import ServiceCrashes
from trimaran.wire import EngineStats, EngineStatus

CONTRAST = """
(() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const solid = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll('body *')]
    .filter((e) => own(e) && e.checkVisibility() && !e.closest('.skip, button:disabled, option'))
    .map((e) => [ratio(light(parse(getComputedStyle(e).color).slice(0, 3)), light(solid(e))), e.outerHTML])
    .filter(([value]) => value < 4.5)
    .map(([value, html]) => `${value.toFixed(2)} ${html.slice(0, 80)}`);
})()
"""


def stats(tokens: float = 0.0, **gauges: float) -> EngineStats:
    return EngineStats(
        counters={"generation_tokens_total": tokens, "prompt_tokens_total": 0.0}, gauges=gauges
    )


# --- the live panel -----------------------------------------------------------------------------------------


def test_the_panel_asks_only_while_it_is_open(page: Any, server: Any) -> None:
    server.engine.reported = stats()
    page.open(server.url)
    before = server.engine.asked
    time.sleep(1.5)
    assert server.engine.asked == before
    page.click("#open-live")
    page.wait_text("#live", "Speed")
    deadline = time.monotonic() + 15
    while server.engine.asked < before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    page.click("#live [data-close]")
    time.sleep(0.3)
    closed = server.engine.asked
    time.sleep(1.5)
    assert server.engine.asked == closed


def test_the_panel_shows_speed_requests_memory_and_experts(page: Any, server: Any) -> None:
    for name, seconds in (("attention_wait_on_experts", 2e-4), ("expert_rpc_latency", 3e-4)):
        Histogram(f"trimaran_{name}_seconds", "…", registry=server.metrics.registry).observe(seconds)
    server.metrics.ttft.observe(0.42)
    start = time.monotonic()

    async def report() -> EngineStats:
        passed = time.monotonic() - start
        server.engine.asked += 1
        return EngineStats(
            counters={"generation_tokens_total": 50 * passed},
            gauges={"num_requests_running": 3, "kv_cache_usage_perc": 0.37, "kv_cache_bytes": 2**30},
            experts={
                "0": {
                    "expert_calls_total": 100 * passed,
                    "expert_compute_seconds_total": 100 * passed * 2.5e-4,
                    "expert_bytes_read_total": 2e9 * passed,
                }
            },
            expert_tokens={
                layer: [int(passed * 10) * (expert == 5) for expert in range(8)] for layer in (1, 2, 3)
            },
        )

    server.engine.stats = report
    page.open(server.url)
    page.click("#open-live")
    page.wait("document.querySelector('.spark .line')?.getAttribute('d')")
    speed = float(page.text("#live .big strong"))
    assert speed == pytest.approx(50, rel=0.05)
    shown = " ".join(page.text("#live").split())
    for part in (
        "Running 3",
        "First token after 420 ms",
        "37 % in use",
        "Attention waits 200 µs",
        "Round trip 300 µs",
        "Experts compute 250 µs",
        "Hop alone 50 µs",
        "Busiest: layer 1, expert 5, 8 × its share",
        "2 GB/s of weights",
        "671 B · Q4_K · 377 GiB",
        "KV cache 1 GiB",
    ):
        assert part in shown, shown
    assert page.js("(({width, height}) => [width, height])(document.querySelector('canvas'))") == [8, 3]
    pixels = page.js(
        "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 8, 1).data]"
        ".filter((_, i) => i % 4 === 0)"
    )
    assert pixels[5] < min(pixels[:5] + pixels[6:]), "in light colours the busiest expert is the darkest"


def test_what_the_engine_does_not_report_is_left_out(page: Any, server: Any) -> None:
    server.engine.reported = EngineStats(counters={}, gauges={})
    page.open(server.url)
    page.click("#open-live")
    titles = (
        "[...document.querySelectorAll('#live h3')].filter(e => e.checkVisibility()).map(e => e.innerText)"
    )
    page.wait(f"{titles}.join() === 'Model and memory'")  # all are there until the first report
    assert page.js(titles) == ["Model and memory"]


def test_several_engines_and_crashes_have_a_section(page: Any, server: Any) -> None:
    server.engine.others = [EngineStatus(state="loading", detail="reading"), None]
    server.engine.reported = stats(**{'num_requests_running{engine="0"}': 3})
    server.crashes["attn-2"] = ServiceCrashes(count=7, last="was killed by SIGSEGV", in_loop=True)
    page.open(server.url)
    page.click("#open-live")
    page.wait_text("#live", "crashed 7 times")
    shown = " ".join(page.text("#live").split())
    for part in (
        "Engine 0 ready · 3 running",
        "Engine 1 loading: reading",
        "Engine 2 away",
        "attn-2 crashed 7 times; last, it was killed by SIGSEGV",
    ):
        assert part in shown, shown
    assert page.js(CONTRAST) == []


def test_a_restarted_engine_is_no_negative_speed(page: Any, server: Any) -> None:
    server.engine.reported = stats(1000.0)
    page.open(server.url)
    page.click("#open-live")
    page.wait_text("#live", "Speed")
    server.engine.reported = stats(10.0)
    asked = server.engine.asked
    deadline = time.monotonic() + 15
    while server.engine.asked < asked + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert page.text("#live .big strong") == "0"


def test_the_state_of_the_engine_is_shown(page: Any, server: Any) -> None:
    server.engine.status = EngineStatus(state="loading", progress=0.42)
    page.open(server.url)
    assert page.text("#state-text") == "loading 42 %"
    server.engine.status = EngineStatus(state="ready")
    page.wait_text("#state-text", "deepseek-r1")
    server.engine.status = None
    time.sleep(0.6)  # a report is good for half a second
    page.click("#state")
    page.wait_text("#state-text", "unavailable")


# --- keyboard and assistive technology ----------------------------------------------------------------------


def test_keys(page: Any, server: Any) -> None:
    page.open(server.url)
    page.click("#open-settings")
    assert page.js("document.activeElement.closest('#settings') !== null")
    assert page.js("document.getElementById('open-settings').getAttribute('aria-expanded')") == "true"
    page.press("Escape")
    assert page.js("document.getElementById('settings').hidden")
    assert page.js("document.activeElement.id") == "open-settings"
    page.press("/")
    assert page.js("document.activeElement.id") == "prompt"
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    page.press("/")
    assert page.js("document.getElementById('prompt').value") == "one\ntwo/"
    assert server.bodies == []


def test_everything_can_be_reached_and_has_a_name(page: Any, server: Any) -> None:
    server.think("Hm.", "```py\nx = 1\n```")
    page.open(server.url)
    page.say("hi")
    page.wait_answer()
    page.js("document.activeElement.blur()")
    seen: list[str] = []
    for _ in range(20):
        page.press("Tab")
        name = page.js("(({id, title, tagName}) => id || title || tagName)(document.activeElement)")
        ring = page.js(
            "((at) => getComputedStyle(at.closest('.field') ?? at).outlineStyle)(document.activeElement)"
        )
        assert ring != "none" or name.startswith("BODY"), f"{name} shows no focus"
        seen.append(name)
    for part in (
        "scroll",
        "new",
        "open-live",
        "open-settings",
        "theme",
        "prompt",
        "Copy code",
        "Regenerate",
        "Edit message",
    ):
        assert part in seen, seen
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "textbox", "link", "combobox", "spinbutton")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_a_starting_question_leaves_the_focus_in_the_message_field(page: Any, server: Any) -> None:
    page.open(server.url)
    page.js("document.querySelector('#starters button').focus()")
    page.press("Enter")
    page.wait_answer()
    assert server.bodies[0]["messages"][0]["content"] == "What is 17 + 25?"
    assert page.js("document.activeElement.id") == "prompt"


def test_progress_is_spoken(page: Any, server: Any) -> None:
    server.answer("a b c", pause_s=0.1)
    page.open(server.url)
    page.say("hi")
    page.wait_text("#spoken", "Waiting for the answer")
    assert page.js("document.querySelector('.answer').getAttribute('aria-busy')") == "true"
    page.wait_text("#spoken", "The answer is complete")
    assert page.js("document.getElementById('messages').getAttribute('aria-live')") == "polite"


# --- screens and colours ------------------------------------------------------------------------------------


def test_poor_contrast_is_found(page: Any, server: Any) -> None:
    page.open(server.url)
    page.js("document.querySelector('.welcome p').style.color = '#999'")
    assert len(page.js(CONTRAST)) == 1


def fill_page(page: Any, server: Any) -> None:
    """A conversation with all there is, and reasoning open."""
    wide = "x" * 300
    server.think(
        "Let me think.",
        f"# Title\n\n{wide} `{wide}`\n\n| a | b |\n|--|--|\n| {wide} | 1 |\n\n```\n{wide}\n```\n> q",
    )
    server.call_tool("look_up", f'{{"a": "{wide}"}}')
    server.answer("", status=400, error=f"no {wide}")
    server.engine.reported = stats(5.0, num_requests_running=1, kv_cache_usage_perc=0.2)
    for number, text in enumerate(("hello " + wide, "tool", "fail"), 1):
        page.say(text)
        page.wait_answer(number)
    page.click(".reasoning summary")


def test_a_phone_shows_all_without_scrolling_sideways(page: Any, server: Any) -> None:
    page.open(server.url, size=(360, 740), touch=True)
    wide = "document.documentElement.scrollWidth"
    inside = "document.getElementById('scroll').scrollWidth - document.getElementById('scroll').clientWidth"
    assert page.js(wide) == 360
    fill_page(page, server)
    assert page.js(wide) == 360
    assert page.js(inside) == 0
    for panel in ("live", "settings"):
        page.click(f"#open-{panel}")
        page.wait(f"!document.getElementById('{panel}').hidden")
        assert page.js(wide) == 360
        assert page.js(f"document.getElementById('{panel}').getBoundingClientRect().width") == 360
        page.click(f"#{panel} [data-close]")
    small = page.js(
        "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
        ".map((e) => [e.title || e.innerText, e.getBoundingClientRect().height])"
        ".filter(([, height]) => height < 24)"
    )
    assert small == [], "WCAG 2.2 asks for 24 pixels"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(page: Any, server: Any, theme: str) -> None:
    page.open(server.url, theme=theme)
    assert page.js(CONTRAST) == []
    fill_page(page, server)
    assert page.js(CONTRAST) == []
    for panel in ("live", "settings"):
        page.click(f"#open-{panel}")
        page.wait("document.querySelector('.panel:not([hidden])').innerText.length > 60")
        assert page.js(CONTRAST) == []


def test_colours_can_be_chosen(page: Any, server: Any) -> None:
    page.open(server.url, theme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.js(paper)
    page.click("#theme")
    assert page.js(paper) == light
    page.click("#theme")
    assert page.js(paper) != light
    page.open(server.url, theme="light")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    assert page.js(paper) != light


def test_nothing_moves_for_those_who_ask_for_it(page: Any, server: Any) -> None:
    server.answer("late", pause_s=1.5)
    page.open(server.url)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.say("hi")
    page.wait_text(".waiting", "Reading")
    assert page.js("document.getAnimations().length") == 0
    page.wait_answer()
