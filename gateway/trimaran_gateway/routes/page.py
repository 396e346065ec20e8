"""The page at `/`, the API's reference at `/docs`, their files, and the figures for the live panel."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from trimaran_gateway.web.assets import PREFIX, Asset, load_assets, make_asset
from trimaran_gateway.web.live import LiveReader
from trimaran_gateway.web.reference import reference_page

# The page runs only its own files: no inline script or style, no foreign host, no HTML made from strings.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASK_AGAIN = "no-cache"
_FOR_GOOD = "public, max-age=31536000, immutable"


def page_router(live: LiveReader) -> APIRouter:
    """The routes of the pages; these need no key, `/internal/live` does like every other call."""
    router = APIRouter(include_in_schema=False)
    assets = load_assets()
    reference: list[Asset] = []  # made when it is first asked for, from the whole application

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _answer(request, assets.index, _ASK_AGAIN)

    @router.api_route("/docs", methods=["GET", "HEAD"])
    async def docs(request: Request) -> Response:
        if not reference:
            document = request.app.openapi()
            reference.append(make_asset("docs.html", reference_page(assets.reference.content, document)))
        return _answer(request, reference[0], _ASK_AGAIN)

    @router.api_route(PREFIX + "{digest}/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, digest: str, name: str) -> Response:
        asset = assets.files.get(name)
        if asset is None:
            raise HTTPException(404, f"the page has no file {name!r:.100}")
        # A page from before an update may still ask below its old digest: it gets the new file, unkept.
        is_current = assets.base == f"{PREFIX}{digest}/"
        return _answer(request, asset, _FOR_GOOD if is_current else _ASK_AGAIN)

    @router.get("/internal/live")
    async def internal_live() -> Response:
        report = await live.read()
        return Response(
            msgspec.json.encode(report),
            media_type="application/json",
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
        )

    return router


def _answer(request: Request, asset: Asset, cache: str) -> Response:
    headers = {**_SECURITY, "Cache-Control": cache, "ETag": asset.etag}
    if _matches(request.headers.get("if-none-match", ""), asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def _matches(condition: str, etag: str) -> bool:
    """Whether the browser already has this version (RFC 9110, 13.1.2: weak comparison)."""
    known = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in known or "*" in known
