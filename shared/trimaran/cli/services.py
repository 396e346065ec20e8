"""The three services as command lines. The common core imports none of them: each is its own process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trimaran.checkup import PACKAGES
from trimaran.cli.children import ServiceCommand
from trimaran.config import Config
from trimaran.errors import ConfigError
from trimaran.replicas import replicas


@dataclass(frozen=True)
class Service:
    """One of the three services.

    Attributes:
        name: what the command line and the logs call it.
        module: what `python -m` runs.
        needs: modules that must be installed for it.
        extra: the extra that installs them.
        options: further options on its command line.
        group: services of the same group do the same work; "": there is no other such one.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    extra: str
    options: tuple[str, ...] = ()
    group: str = ""

    def command(self, arguments: Sequence[str]) -> ServiceCommand:
        """The command line that runs it with `arguments`.

        Raises:
            ConfigError: a module that it needs is not installed.
        """
        for module in (self.module, *self.needs):
            if importlib.util.find_spec(module) is None:
                package = f"trimaran[{self.extra}]" if self.extra else "trimaran"
                raise ConfigError(
                    f"the {self.name} service needs the Python module {module}, which is not installed",
                    remedy=f"pip install '{package}'",
                )
        # -P keeps the working directory off sys.path: a folder there must not shadow a package.
        return ServiceCommand(self.name, (sys.executable, "-P", "-m", self.module, *arguments, *self.options))


EXPERTS = Service("experts", "trimaran_experts", ("trimaran_kernels",), "")
ATTN = Service("attn", "trimaran_attn", PACKAGES["attn"], "attn")
GATEWAY = Service("gateway", "trimaran_gateway", PACKAGES["gateway"], "gateway")


def services_for(config: Config) -> tuple[Service, ...]:
    """What a server starts, in order: no expert service if its shards run elsewhere.

    Raises:
        ConfigError: one shard of several is configured, and nothing says where the others are.
    """
    if config.experts.endpoints:
        return *_attention_services(config), GATEWAY
    if config.experts.experts != "all":
        raise ConfigError(
            f"experts.experts is {config.experts.experts}: a server needs all experts",
            remedy="leave it out, or start shards by `trimaran experts` and name all in experts.endpoints",
        )
    return EXPERTS, *_attention_services(config), GATEWAY


def _attention_services(config: Config) -> Iterator[Service]:
    """One, or one for each of `attn.replicas`."""
    if not config.attn.replicas:
        yield ATTN
        return
    for number in replicas(config):
        options = (f"--set=attn.replica={number}",)
        yield replace(ATTN, name=f"attn-{number}", options=options, group="attn")
