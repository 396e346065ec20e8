"""Keys that let only a cluster's own members in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth

from trimaran.errors import ConfigError


@dataclass(frozen=True)
class CurveKeys:
    """CURVE key pairs (Z85 text) of a cluster: every member holds the same pair and admits nobody else."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> CurveKeys:
        """A fresh pair."""
        return cls(*zmq.curve_keypair())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CurveKeys:
        """Read a pair from a `.key_secret` file (ZeroMQ's certificate format) that only its owner may read.

        Raises:
            ConfigError: the file is missing, readable by others, or no secret certificate.
        """
        try:
            if Path(path).stat().st_mode & 0o077:
                raise ConfigError(f"{path}: others may read this secret key", remedy=f"chmod 600 {path}")
            public, secret = zmq.auth.load_certificate(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{path}: no CURVE key file: {reason}", remedy="docs/hop.md says how to make one"
            ) from error
        if secret is None:
            raise ConfigError(f"{path}: holds no secret key", remedy="give the .key_secret file")
        return cls(public, secret)


class OneKey:
    """The CURVE credentials check: admits the cluster's own key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a peer with this public key is let in."""
        del domain
        return key == self._public
