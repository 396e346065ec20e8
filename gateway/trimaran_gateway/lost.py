"""What a client hears that asked for a path, or a method, that is not there."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from starlette.exceptions import HTTPException

from trimaran_gateway.errors import ApiError

_LONGEST = 100


def is_lost(error: HTTPException) -> bool:
    """Whether no route took the request; a route's own refusals bring words of their own."""
    return (error.status_code, error.detail) in ((404, "Not Found"), (405, "Method Not Allowed"))


def explained(error: HTTPException, method: str, path: str, known: AbstractSet[str]) -> ApiError:
    """The same refusal in words: the nearest of the `known` paths, or the methods that there are."""
    shown = path if len(path) <= _LONGEST else f"{path[:_LONGEST]}…"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        answer = ApiError(405, f"{shown} does not take {method}, but {allowed}", code="method_not_allowed")
        answer.headers = error.headers
        return answer
    guess = _nearest(path, known)
    hint = f"did you mean {guess}?" if guess else "/docs lists what there is"
    return ApiError(404, f"there is no {shown}: {hint}", code="not_found")


def _nearest(path: str, known: AbstractSet[str]) -> str | None:
    """Clients append their path to a base address: with one `/v1` too few, or one too many."""
    bare = path.rstrip("/")
    guesses = (bare, f"/v1{bare}", bare.removeprefix("/v1"), bare.removeprefix("/api"))
    return next((guess for guess in guesses if guess in known), None)
