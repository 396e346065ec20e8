"""Who is attached: hellos checked, sessions opened and closed, silent peers dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

from trimaran.errors import KernelError
from trimaran.telemetry import Log
from trimaran.wire import PROTOCOL_VERSION, SILENCE_S, Hello, Refused

from trimaran_experts.engine import ShardEngine
from trimaran_experts.sessions import Session, open_session

MAX_CLIENTS = 32
_log = Log(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """What a hello must agree with."""

    fingerprint: str
    hidden_size: int
    top_k: int
    n_experts: int
    n_columns: int
    layers: tuple[int, ...]


@dataclass
class Client:
    """One attention service.

    Attributes:
        session: None while weights are still being read.
        borrows: it computes from the weights itself.
    """

    hello: Hello
    last_heard: float
    session: Session | None = None
    borrows: bool = False


@dataclass
class Clients:
    """The attached clients by peer id, and sessions that wait for their last call to end."""

    facts: ModelFacts
    by_peer: dict[bytes, Client] = field(default_factory=dict)
    leaving: list[Session] = field(default_factory=list)

    @property
    def borrow(self) -> bool:
        """Whether any computes from the weights itself."""
        return any(client.borrows for client in self.by_peer.values())

    def admit(self, peer: bytes, hello: Hello, now: float) -> Refused | None:
        """Take a client in, or say why not. A repeated hello changes nothing, a new one begins anew."""
        known = self.by_peer.get(peer)
        if known is not None and known.hello == hello:
            known.last_heard = now
            return None
        self.drop(peer, "says hello again")
        refusal = refuse(hello, self.facts)
        if refusal is None and len(self.by_peer) >= MAX_CLIENTS:
            refusal = Refused(reason=f"{MAX_CLIENTS} clients are attached already")
        if refusal is None:
            self.by_peer[peer] = Client(hello, now)
        return refusal

    def open(self, peer: bytes, engine: ShardEngine) -> Refused | None:
        """Open the session of an admitted client, unless it is open; one whose arena is bad is dropped."""
        client = self.by_peer[peer]
        if client.session is not None:
            return None
        try:
            client.session = open_session(client.hello, engine)
        except KernelError as error:
            del self.by_peer[peer]
            return Refused(reason=str(error))
        _log.info("client attached", client=client.hello.client, notifier=client.hello.notifier)
        return None

    def drop(self, peer: bytes, reason: str) -> None:
        """Detach a client; unknown ones are ignored."""
        client = self.by_peer.pop(peer, None)
        if client is None:
            return
        _log.info("client detached", client=client.hello.client, reason=reason)
        if client.session is not None:
            client.session.detach()
            self.leaving.append(client.session)

    def drop_silent(self, now: float) -> None:
        """Detach whoever is silent for too long or has no arena any more; forget sessions that have ended."""
        for peer, client in list(self.by_peer.items()):
            if now - client.last_heard > SILENCE_S:
                self.drop(peer, f"silent for {SILENCE_S:.0f} s")
            elif client.session is not None and client.session.lost:
                self.drop(peer, "its arena was cut short")
        self.leaving = [session for session in self.leaving if not session.finished]

    def drop_all(self, reason: str) -> None:
        """Detach everybody."""
        for peer in list(self.by_peer):
            self.drop(peer, reason)


def refuse(hello: Hello, facts: ModelFacts) -> Refused | None:
    """Why this hello cannot be served, or None."""
    pairs = (
        ("protocol", PROTOCOL_VERSION, hello.protocol),
        ("model_fingerprint", facts.fingerprint, hello.model_fingerprint),
        ("hidden_size", facts.hidden_size, hello.hidden_size),
        ("top_k", facts.top_k, hello.top_k),
        ("n_experts", facts.n_experts, hello.n_experts),
        ("layers", _ranges(facts.layers), _ranges(hello.layers)),
    )
    differences = tuple(f"{name}: ours {ours}, yours {yours}" for name, ours, yours in pairs if ours != yours)
    if differences:
        return Refused(reason="another model or version", differences=differences)
    if hello.dtype not in ("f32", "bf16"):
        return Refused(reason=f"dtype {hello.dtype!r:.40} is not f32 or bf16")
    if hello.notifier not in ("doorbell", "zmq", "tcp"):
        return Refused(reason=f"notifier {hello.notifier!r:.40} is not doorbell, zmq or tcp")
    return None


def _ranges(layers: tuple[int, ...]) -> str:
    """Layers as text, runs shortened: 3-60."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs) or "none"
