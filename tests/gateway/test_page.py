"""The page's routes and figures, without a browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram
from trimaran.wire import EngineStats, EngineStatus
from trimaran_gateway.routes.page import page_router
from trimaran_gateway.web.assets import load_assets
from trimaran_gateway.web.live import LiveReader, Model, histograms
from trimaran_gateway.web.reference import reference_page

STATIC = files("trimaran_gateway") / "web" / "static"


@dataclass
class FakeEngine:
    status: EngineStatus | None = None
    reported: EngineStats | None = None
    asked: int = 0

    @property
    def statuses(self) -> dict[str, EngineStatus | None]:
        return {"0": self.status}

    async def stats(self) -> EngineStats | None:
        self.asked += 1
        await asyncio.sleep(0)
        return self.reported


class FakeMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.taken: list[tuple[EngineStats | None, EngineStatus | None]] = []

    def take_stats(self, stats: EngineStats | None, status: EngineStatus | None) -> None:
        self.taken.append((stats, status))


def reader(engine: FakeEngine, metrics: FakeMetrics | None = None) -> LiveReader:
    return LiveReader(engine, metrics or FakeMetrics(), Model(name="tiny"))


def ask(path: str, method: str = "GET", engine: FakeEngine | None = None, **headers: str) -> httpx.Response:
    async def call() -> httpx.Response:
        app = FastAPI()
        app.include_router(page_router(reader(engine or FakeEngine())))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(call())


# --- files --------------------------------------------------------------------------------------------------


def test_the_pages_name_every_file_under_their_digest() -> None:
    assets = load_assets()
    index, reference = assets.index.content.decode(), assets.reference.content.decode()
    assert "{{" not in index
    named = set(re.findall(rf'(?:src|href)="{assets.base}([^"]+)"', index + reference))
    assert named == set(assets.files), "every module is preloaded, and nothing that does not exist"


def test_modules_import_only_what_is_there() -> None:
    assets = load_assets()
    for name, asset in assets.files.items():
        for imported in re.findall(r"^import .*? from '(.+?)';$", asset.content.decode(), re.MULTILINE):
            assert imported.startswith("./"), f"{name} imports {imported}"
            assert imported[2:] in assets.files, f"{name} imports {imported}"


def test_no_file_makes_html_from_text_or_names_another_host() -> None:
    for name, asset in load_assets().files.items():
        text = asset.content.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name
        hosts = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert not hosts, f"{name} names {hosts}"


def test_the_index_is_checked_each_time_and_its_files_are_kept() -> None:
    index = ask("/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert index.headers["cache-control"] == "no-cache"
    base = load_assets().base
    file = ask(f"{base}app.js")
    assert file.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in file.headers["cache-control"]
    assert file.content == (STATIC / "app.js").read_bytes()
    assert ask(f"{base}style.css").headers["content-type"] == "text/css; charset=utf-8"
    assert ask(f"{base}logo.svg").headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize("path", ["/", load_assets().base + "app.js"])
def test_unchanged_files_are_not_sent_again(path: str) -> None:
    etag = ask(path).headers["etag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = ask(path, **{"If-None-Match": condition})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == etag
    assert ask(path, **{"If-None-Match": '"other"'}).status_code == 200


def test_a_page_from_before_an_update_still_finds_its_modules() -> None:
    file = ask("/page/0123456789abcdef/app.js")
    assert file.status_code == 200
    assert file.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["missing.js", "index.html", "..%2f__init__.py", "__init__.py", "%2e%2e"])
def test_only_the_files_themselves_are_served(name: str) -> None:
    assert ask(f"{load_assets().base}{name}").status_code == 404


@pytest.mark.parametrize("path", ["/", load_assets().base + "app.js"])
def test_security_headers(path: str) -> None:
    headers = ask(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_head_works() -> None:
    assert ask("/", "HEAD").status_code == 200


def test_a_folder_without_the_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index\.html"):
        load_assets(tmp_path)


def test_any_change_gives_another_base(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="{{assets}}app.js"></script>')
    (tmp_path / "reference.html").write_text('<link href="{{assets}}style.css">{{content}}')
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "notes.txt").write_text("not served")
    before = load_assets(tmp_path)
    assert set(before.files) == {"app.js"}
    assert f'"{before.base}app.js"' in before.index.content.decode()
    (tmp_path / "app.js").write_text("2")
    after = load_assets(tmp_path)
    assert after.base != before.base
    assert after.index.etag != before.index.etag


# --- figures ------------------------------------------------------------------------------------------------


def live(engine: FakeEngine) -> dict[str, Any]:
    answer = ask("/internal/live", engine=engine)
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def test_without_an_engine_the_report_says_so() -> None:
    report = live(FakeEngine())
    assert report["engine"]["state"] == "unavailable"
    assert report["model"]["name"] == "tiny"
    assert report["counters"] == report["gauges"] == report["shards"] == {}
    assert report["heat"] == []


def test_the_report_tells_what_the_engine_tells() -> None:
    engine = FakeEngine(
        status=EngineStatus(state="loading", progress=0.25, context_length=512),
        reported=EngineStats(
            counters={"generation_tokens_total": 5.0},
            gauges={"kv_cache_usage_perc": 0.5},
            experts={"0": {"expert_calls_total": 3.0}},
            expert_tokens={2: [1, 0, 0], 1: [0, 0, 4]},
        ),
    )
    report = live(engine)
    assert report["engine"] == {"state": "loading", "detail": "", "progress": 0.25, "context_length": 512}
    assert report["counters"] == {"generation_tokens_total": 5.0}
    assert report["gauges"] == {"kv_cache_usage_perc": 0.5}
    assert report["shards"] == {"0": {"expert_calls_total": 3.0}}
    assert report["heat"] == [{"layer": 1, "tokens": [0, 0, 4]}, {"layer": 2, "tokens": [1, 0, 0]}]


def test_many_panels_ask_the_engine_once_and_samples_are_not_lost() -> None:
    engine = FakeEngine(reported=EngineStats(counters={}, gauges={}, observations={"x_seconds": [1.0]}))
    metrics = FakeMetrics()

    async def crowd() -> set[float]:
        shared = reader(engine, metrics)
        reports = await asyncio.gather(*(shared.read() for _ in range(20)))
        return {report.time for report in reports}

    assert len(asyncio.run(crowd())) == 1
    assert engine.asked == 1
    assert metrics.taken == [(engine.reported, None)]


def test_a_report_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimaran_gateway.web.live.MIN_INTERVAL_S", 0.0)
    engine = FakeEngine()

    async def twice() -> None:
        shared = reader(engine)
        await shared.read()
        await shared.read()

    asyncio.run(twice())
    assert engine.asked == 2


def test_histograms_of_all_shards_are_one() -> None:
    registry = CollectorRegistry()
    calls = Histogram("trimaran_call_seconds", "…", ["shard"], buckets=(0.1, 1.0), registry=registry)
    for shard, value in (("0", 0.05), ("1", 0.5), ("1", 2.0)):
        calls.labels(shard).observe(value)
    call = histograms(registry)["call_seconds"]
    assert (call.count, call.sum) == (3, pytest.approx(2.55))
    assert (call.le, call.counts) == ([0.1, 1.0], [1, 2])


def test_histograms_are_cumulative_and_empty_ones_absent() -> None:
    registry = CollectorRegistry()
    Histogram("trimaran_empty_seconds", "…", registry=registry)
    Counter("trimaran_some", "…", registry=registry).inc()
    waits = Histogram("trimaran_wait_seconds", "…", buckets=(0.1, 1.0), registry=registry)
    for value in (0.05, 0.5, 2.0):
        waits.observe(value)
    found = histograms(registry)
    assert list(found) == ["wait_seconds"]
    wait = found["wait_seconds"]
    assert (wait.count, wait.sum) == (3, pytest.approx(2.55))
    assert (wait.le, wait.counts) == ([0.1, 1.0], [1, 2])


# --- in the gateway -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(make_stack: Any) -> Iterator[Any]:
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    with make_stack(api_keys=(digest,)) as stack:
        yield stack


def test_the_page_is_open_and_its_figures_need_the_key(locked: Any) -> None:
    assert "<title>Trimaran</title>" in httpx.get(f"{locked.url}/").text
    assert httpx.head(locked.url).status_code == 200
    assert httpx.get(f"{locked.url}{load_assets().base}app.js").status_code == 200
    refused = httpx.get(f"{locked.url}/internal/live")
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    report = httpx.get(f"{locked.url}/internal/live", headers={"Authorization": "Bearer secret"}).json()
    assert report["engine"]["state"] == "ready"
    assert report["engine"]["context_length"] == 4096
    assert report["model"]["architecture"] == "deepseek2"
    assert report["counters"]["prompt_tokens_total"] == 7
    assert report["histograms"]["attention_wait_on_experts_seconds"]["count"] >= 2


def test_the_reference_is_whole_and_brings_all_it_needs(locked: Any) -> None:
    page = httpx.get(f"{locked.url}/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "{{" not in page.text
    hosts = re.findall(r"https?://[\w.]+", page.text)
    assert not hosts, "nothing comes from elsewhere"
    document = httpx.get(f"{locked.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f'<code class="method">{method.upper()}</code> <code>{path}</code>' in page.text
    for name, schema in document["components"]["schemas"].items():
        assert f'id="object-{name}"' in page.text
        for field in (*schema.get("properties", {}), *schema.get("x-refused", {})):
            assert f"<code>{field}</code>" in page.text, (name, field)
    targets = set(re.findall(r'href="#([^"]+)"', page.text))
    assert targets <= set(re.findall(r'id="([^"]+)"', page.text))
    assert httpx.get(f"{locked.url}/redoc", headers={"x-api-key": "secret"}).status_code == 404


def test_the_reference_quotes_what_it_is_given() -> None:
    schema = {"properties": {"<b>": {"type": "string", "pattern": "<i>", "default": "</td>"}}}
    document = {
        "info": {"title": "<Title>", "version": "1"},
        "paths": {},
        "components": {"schemas": {"Odd": schema}},
    }
    page = reference_page(b"{{title}}{{content}}", document).decode()
    assert not {"<b>", "<i>", "<Title>"} & set(re.findall(r"<[^>]+>", page))
    assert page.count("</td>") == page.count("<td>")


def test_the_page_is_no_part_of_the_api(locked: Any) -> None:
    schema = httpx.get(f"{locked.url}/openapi.json", headers={"x-api-key": "secret"}).json()
    assert not [path for path in schema["paths"] if path == "/" or path.startswith(("/page", "/internal"))]
