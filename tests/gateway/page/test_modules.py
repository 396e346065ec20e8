"""The page's modules one by one: Markdown, event streams, answers and rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from trimaran_gateway.web.assets import load_assets

BASE = load_assets().base

FORMULA = '<div class="formula" tabindex="0"><code>'

# What comes out, in short: tags with what is in them, code blocks as PRE.
MARKDOWN = [
    ("plain", "<p>plain"),
    ("two\nlines", "<p>two\nlines"),
    ("one\n\ntwo", "<p>one<p>two"),
    ("# Title #", "<h3>Title"),
    ("###### deep", "<h6>deep"),
    ("#no", "<p>#no"),
    ("**b** *i* ***both*** ~~s~~", "<p><strong>b</strong> <em>i</em> <strong><em>both</em></strong> <del>s"),
    ("snake_case_name 2*3*4 a * b", "<p>snake_case_name 2<em>3</em>4 a * b"),
    ("**open and *open", "<p>**open and *open"),
    ("\\*no\\* `*code*` `` a`b ``", "<p>*no* <code>*code*</code> <code>a`b"),
    ("`never closed", "<p>`never closed"),
    ("a <b>b</b> & c", "<p>a &lt;b&gt;b&lt;/b&gt; &amp; c"),
    ("see https://a.example/x.", '<p>see <a href="https://a.example/x">https://a.example/x</a>.'),
    ("[t](https://a.example)", '<p><a href="https://a.example/">t'),
    ("[t](javascript:alert)", "<p>[t](javascript:alert)"),
    ("[t](/internal)", "<p>[t](/internal)"),
    ("- a\n- b\n  - c\n- d", "<ul><li>a<li>b<ul><li>c</ul><li>d"),
    ("3. a\n4. b", '<ol start="3"><li>a<li>b'),
    ("- a\n\n  more\n- b", "<ul><li><p>a<p>more<li>b"),
    ("- a\n1. b", '<ul><li>a</ul><ol start="1"><li>b'),
    ("text\n- a", "<p>text<ul><li>a"),
    ("> q\n> - a", "<blockquote><p>q<ul><li>a"),
    ("---", "<hr>"),
    ("- - -", "<hr>"),
    ("```py\n# no *title*\n\n- x\n```\nafter", "<pre>py:# no *title*\n\n- x</pre><p>after"),
    ("~~~\n```\n~~~", "<pre>text:```"),
    ("```\nopen", "<pre>text:open"),
    ("- a\n  ```\n  x\n  ```", "<ul><li>a<pre>text:x"),
    ("a|b\n-|-\n1|2", "<table><th>a<th>b<td>1<td>2"),
    ("| a |\n|---|\n| `x` \\| y |\nend", "<table><th>a<td><code>x</code> | y</table><p>end"),
    ("a | b", "<p>a | b"),
    ("a|b\n-|-\n1<br>2|<BR/>x", "<table><th>a<th>b<td>1<br>2<td><br>x"),
    ("[t](https://a.example/b_(c)) d)", '<p><a href="https://a.example/b_(c)">t</a> d)'),
    ("- [ ] a *b*\n- [x] c\n- [y] d", '<ul><li class="task">☐ a <em>b</em><li class="task">☑ c<li>[y] d'),
    (
        "so \\(a_i * b_i * c\\), $x_1 * y_1$ and $$z$$",
        "<p>so <code>a_i * b_i * c</code>, <code>x_1 * y_1</code> and <code>z",
    ),
    ("$5 and $6, US$7 or $8-$9, a \\$ b$ c", "<p>$5 and $6, US$7 or $8-$9, a $ b$ c"),
    ("never \\(closed, \\[either, $$or", "<p>never (closed, [either, $$or"),
    ("thus\n\\[\n+ x_1\n- y * z\n\\]\nend", f"<p>thus{FORMULA}+ x_1\n- y * z</div><p>end"),
    ("$$a *b* c$$\n\\[ x \\]", f"{FORMULA}a *b* c</div>{FORMULA}x</div>"),
    ("\\[ x \\] is\n\nx", "<p><code>x</code> is<p>x"),
    ("\\[\nopen\n\nx", "<p>[\nopen<p>x"),
]

SHORT = """
(root) => {
  for (const figure of root.querySelectorAll('figure')) {
    const pre = document.createElement('pre');
    const [language, code] = figure.querySelectorAll('span, code');
    pre.textContent = `${language.textContent}:${code.textContent}`;
    figure.replaceWith(pre);
  }
  for (const table of root.querySelectorAll('.table')) {
    table.replaceWith(table.firstChild);
  }
  for (const cell of root.querySelectorAll('thead, tbody, tr')) cell.replaceWith(...cell.childNodes);
  for (const link of root.querySelectorAll('a')) {
    link.removeAttribute('rel');
    link.removeAttribute('target');
  }
  return root.innerHTML;
}
"""


@pytest.fixture
def module(page: Any, server: Any) -> Callable[..., Any]:
    """Runs an async function's body with what a module exports as `m`."""
    page.open(server.url)

    def run(name: str, body: str) -> Any:
        return page.js(f"(async () => {{ const m = await import('{BASE}{name}.js'); {body} }})()")

    return run


def close_tags(short: str) -> str:
    """End tags are left out of the expectations where they say nothing: drop them all."""
    for tag in (
        "p",
        "li",
        "ul",
        "ol",
        "h3",
        "h6",
        "pre",
        "table",
        "th",
        "td",
        "blockquote",
        "del",
        "a",
        "code",
    ):
        short = short.replace(f"</{tag}>", "")
    return short


def test_markdown(module: Any) -> None:
    found = module(
        "markdown",
        f"""
        const short = {SHORT};
        return {json.dumps([text for text, _ in MARKDOWN])}.map((text) => {{
          const root = document.createElement('div');
          new m.Markdown(root).update(text);
          return short(root);
        }});
        """,
    )
    for (text, wanted), html in zip(MARKDOWN, found, strict=True):
        assert close_tags(html) == close_tags(wanted), text


def test_markdown_that_grows_is_the_same_as_markdown_at_once(module: Any) -> None:
    text = "\n\n".join(text for text, _ in MARKDOWN)
    same, kept = module(
        "markdown",
        f"""
        const text = {json.dumps(text)};
        const [once, grown] = [document.createElement('div'), document.createElement('div')];
        new m.Markdown(once).update(text);
        const view = new m.Markdown(grown);
        view.update('plain\\n\\n');
        const first = grown.firstChild;
        for (let end = 0; end <= text.length; end += 7) view.update(text.slice(0, end));
        view.update(text);
        view.update(text);
        return [once.innerHTML === grown.innerHTML, grown.childNodes.length > 20 && first !== null];
        """,
    )
    assert same
    assert kept


def test_finished_blocks_are_not_drawn_again(module: Any) -> None:
    assert module(
        "markdown",
        """
        const root = document.createElement('div');
        const view = new m.Markdown(root);
        view.update('one\\n\\ntw');
        const [one] = root.children;
        view.update('one\\n\\ntwo\\n\\nthree');
        return root.children[0] === one && root.children.length === 3;
        """,
    )


def test_nasty_markdown_takes_no_time(module: Any) -> None:
    nasty = [
        "*a " * 5000,
        "[" * 5000,
        "`" * 3001 + " `` " * 2000,
        "> " * 3000 + "x",
        "- " * 3000,
        "_*" * 4000,
        "|" * 9000,
        "$a " * 5000,
        "\\[\n" * 3000,
        "\\( " * 5000,
        "[a](" * 3000,
    ]
    times = module(
        "markdown",
        f"""
        return {json.dumps(nasty)}.map((text) => {{
          const start = performance.now();
          new m.Markdown(document.createElement('div')).update(text);
          return performance.now() - start;
        }});
        """,
    )
    assert max(times) < 2000, times


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_event_streams_in_any_pieces(module: Any, size: int) -> None:
    stream = ': hi\n\ndata: {"a": "é–"}\n\ndata:x\r\ndata: y\r\n\r\nevent: z\rdata: last\r\r\ndata: end'
    found = module(
        "sse",
        f"""
        const bytes = new TextEncoder().encode({json.dumps(stream)});
        const body = new ReadableStream({{
          start(controller) {{
            for (let at = 0; at < bytes.length; at += {size}) {{
              controller.enqueue(bytes.slice(at, at + {size}));
            }}
            controller.close();
          }},
        }});
        const found = [];
        for await (const data of m.readEvents(body)) found.push(data);
        return found;
        """,
    )
    assert found == ['{"a": "é–"}', "x\ny", "last", "end"]


def test_an_answer_is_put_together(module: Any) -> None:
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "a"},
        {"reasoning": "b"},
        {"content": "c"},
        {"tool_calls": [{"index": 1, "id": "2", "function": {"name": "g", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
    ]
    answer, thought, speed = module(
        "completion",
        f"""
        const answer = m.emptyAnswer(0);
        for (const [i, delta] of {json.dumps(deltas)}.entries()) {{
          m.addChunk(answer, {{ choices: [{{ delta }}] }}, i * 1000);
        }}
        m.addChunk(answer, {{ choices: [{{ delta: {{}}, finish_reason: 'tool_calls' }}] }}, 9000);
        m.addChunk(answer, {{ choices: [], usage: {{ completion_tokens: 11 }} }}, 9000);
        return [answer, m.thinkingSeconds(answer, 9000), m.speed(answer)];
        """,
    )
    assert (answer["reasoning"], answer["content"], answer["finish"]) == ("ab", "c", "tool_calls")
    assert [(call["id"], call["name"], call["arguments"]) for call in answer["calls"]] == [
        ("1", "f", ""),
        ("2", "g", "{}"),
    ]
    assert thought == 2
    assert speed == pytest.approx(10 / 5)


def test_rates(module: Any) -> None:
    found = module(
        "rates",
        """
        const report = (time, tokens, count = 0, sum = 0) => ({
          time, counters: { tokens }, gauges: {}, shards: {},
          histograms: count ? { wait: { count, sum } } : {},
          heat: [{ layer: 1, tokens: [tokens, 0] }],
        });
        const history = new m.History();
        const tokens = m.counter('tokens');
        const rates = [history.rate(tokens)];
        for (let t = 0; t <= 100; t += 1) history.add(report(t, 10 * t, 1 + t, t * 0.5));
        history.add(report(100, 1e9));
        rates.push(history.rate(tokens), history.rates(tokens).length, history.growth(tokens));
        rates.push(history.mean('wait'), history.mean('none'), history.heat()[0].tokens);
        history.add(report(101, 3));
        rates.push(history.rate(tokens), history.rate(m.counter('absent')), history.heat()[0].tokens);
        return rates;
        """,
    )
    assert found == [None, 10, 60, 600, 0.5, None, [600, 0], 0, None, [3, 0]]


def test_numbers_for_people(module: Any) -> None:
    found = module(
        "format",
        """
        return [
          ...[4.1e-5, 0.0123, 0.42, 3.14159, 200].map(m.duration),
          ...[0, 1023, 9.2e9].map(m.bytes), ...[12, 671e9].map(m.count), ...[2.5e6, 2e11].map(m.bandwidth),
          ...[0.004, 0.37, 1].map(m.percent),
          m.plural(1, 'token'), m.plural(1200, 'token'),
        ];
        """,
    )
    assert found == [
        "41 µs", "12.3 ms", "420 ms", "3.1 s", "3 min 20 s", "0 B", "1,023 B", "8.57 GiB", "12", "671 B",
        "2.5 MB/s", "200 GB/s", "0.4 %", "37 %", "100 %", "1 token", "1,200 tokens",
    ]  # fmt: skip
