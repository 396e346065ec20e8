"""The one configuration of all services: a YAML file, overridden by the environment, overridden by flags.

Every option is a field here with its description, which `docs/configuration.md` and `--help` are made from.
Environment variables name the path with double underscores: `TRIMARAN_GATEWAY__PORT=8080`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from trimaran.kv_format import KvChoice

Precision = Literal["int8", "exact"]
Notifier = Literal["doorbell", "zmq", "tcp"]
LogLevel = Literal["debug", "info", "warning", "error"]
_DAY_S = 86400.0  # no wait is longer
_DEVICE = r"^(auto|cpu|cuda(:\d+)?(\+cuda:\d+)*)$"
_REPLICA = r"^(cpu|cuda(:\d+)?(\+cuda:\d+)*)$"
_DIGEST = r"^[0-9a-fA-F]{64}$"
_ORIGIN = r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]+)$"
_MEMORY = r"^(auto|\d+(\.\d+)?\s?([KMGT]i?)?B?)$"


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP front."""

    host: Annotated[str, Meta(description="address to listen on; 0.0.0.0 opens it to the network")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one")] = 8000
    api_keys: Annotated[
        tuple[Annotated[str, Meta(pattern=_DIGEST)], ...],
        Meta(
            description="SHA-256 hex digests of the accepted keys, as `printf %s KEY | sha256sum` prints"
            " them; empty: open",
            extra_json_schema={"writeOnly": True},
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=_ORIGIN)], ...],
        Meta(description="origins allowed to call from a browser, e.g. https://ui.example:8443, or *"),
    ] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 8 << 20
    requests_per_minute: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="requests that one key, or one address without keys, may make; none: no limit"),
    ] = None
    tokens_per_minute: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="prompt and generated tokens of one key or address; none: no limit"),
    ] = None
    max_concurrent_requests: Annotated[
        int, Meta(ge=1, description="requests of one key or address that may be under way at once")
    ] = 512
    request_timeout_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="longest time one request may take")
    ] = 3600.0
    drain_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="time that running answers get to finish when the server stops"),
    ] = 15.0


class AttnConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The attention service."""

    device: Annotated[
        str,
        Meta(
            pattern=_DEVICE,
            description="cpu, cuda:N, or several GPUs that share the layers, e.g. cuda:0+cuda:1; auto: the"
            " first GPU, with the next ones if it takes them to fit; else the CPU",
        ),
    ] = "auto"
    layers: Annotated[
        str,
        Meta(
            pattern=r"^(auto|\d+-\d+(,\d+-\d+)*)$",
            description="layers of each of several GPUs, e.g. 0-30,31-60; auto: balanced by their memory",
        ),
    ] = "auto"
    replicas: Annotated[
        tuple[Annotated[str, Meta(pattern=_REPLICA)], ...],
        Meta(
            description="devices of several attention services that share the expert service, e.g."
            " cuda:0,cuda:1; in place of attn.device; empty: one service"
        ),
    ] = ()
    replica: Annotated[
        int, Meta(ge=0, le=63, description="which of attn.replicas an attention service is, from 0")
    ] = 0
    rules: Annotated[
        str | None,
        Meta(
            description="YAML file of rules that give modules their implementation, device and element type:"
            " KTransformers' form or a shorter one, see docs/rules.md; none: the defaults"
        ),
    ] = None
    gpu_memory: Annotated[
        str, Meta(pattern=_MEMORY, description="GPU memory to plan for, e.g. 24GiB; auto: all of the card")
    ] = "auto"
    context_length: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="longest prompt + answer; none: the model's own, as memory allows"),
    ] = None
    kv_memory: Annotated[
        str,
        Meta(pattern=_MEMORY, description="memory of the KV cache, e.g. 4GiB; auto: from the machine"),
    ] = "auto"
    kv_dtype: Annotated[
        KvChoice,
        Meta(
            description="element type of the KV cache; auto: bf16, or f32 on a CPU with precision exact."
            " fp8 and int8 have a scale for each 128"
            " values of a latent, and take 57 % of its memory"
        ),
    ] = "auto"
    prefix_cache: Annotated[
        bool, Meta(description="reuse the KV cache of what prompts have in common with earlier requests")
    ] = True
    max_running: Annotated[int, Meta(ge=1, le=1024, description="requests computed in one batch")] = 16
    max_waiting: Annotated[
        int, Meta(ge=0, description="requests that may wait; more are refused with 503")
    ] = 256
    max_step_tokens: Annotated[
        int, Meta(ge=1, le=65536, description="token budget of one step; longer prompts are cut in chunks")
    ] = 512
    lone_step_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | None,
        Meta(
            description="token budget of a step that computes one prompt and nothing else, so that no stream"
            " waits for it; none: on a CPU four times attn.max_step_tokens, on a GPU as many, since it takes"
            " memory"
        ),
    ] = None
    micro_batches: Annotated[
        int,
        Meta(
            ge=1,
            le=4,
            description="parts of a step, computed in turns so that attention and experts overlap; "
            "2 pays when they sit on different hardware",
        ),
    ] = 1
    defer_experts: Annotated[
        int,
        Meta(
            ge=0,
            le=31,
            description="experts of each token, the lightest ones, that are added one layer later, so that"
            " they are computed beside the next layer's attention; changes the results a little; 0: none",
        ),
    ] = 0
    gpu_experts: Annotated[
        str,
        Meta(
            pattern=r"^(off|auto|\d+(\.\d+)?\s?([KMGT]i?)?B?)$",
            description="GPU memory for routed experts, those that are used most, e.g. 8GiB; auto: three"
            " quarters of what the plan leaves, none on a CPU. They round differently than there, and which"
            " ones they are depends on earlier requests",
        ),
    ] = "off"
    heat_file: Annotated[
        str | None,
        Meta(
            description="where it is kept how often each expert is used, for the next start with gpu_experts"
            " (replicas add their numbers to its name); none: trimaran/heat-*.json, for each model, in"
            " $XDG_CACHE_HOME or ~/.cache"
        ),
    ] = None
    stream_prefill: Annotated[
        Literal["off", "auto"],
        Meta(
            description="auto: a GPU computes a part of long prompts' experts, whose weights it reads from"
            " the model file on the way, where rates that are measured at the first long prompt say that it"
            " pays; these round differently than on the CPU"
        ),
    ] = "off"
    experts: Annotated[
        Literal["auto", "service"],
        Meta(
            description="who computes routed experts for an attention service on a CPU; auto: it does so"
            " itself, from the memory of an expert service that has the same CPUs, which saves two changes of"
            " process a layer; service: the expert service, always"
        ),
    ] = "auto"
    cuda_graphs: Annotated[
        Literal["auto", "off"],
        Meta(
            description="whether a GPU replays decode steps that were recorded once, hops to the experts"
            " included; auto: where it can"
        ),
    ] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads; none: the cores it may use")
    ] = None
    mla: Annotated[
        Literal["auto", "naive", "absorbed"],
        Meta(description="form of the attention; auto picks the cheaper one per step"),
    ] = "auto"


class ExpertsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The expert service, or services: one per shard."""

    notifier: Annotated[Notifier, Meta(description="how the two sides ring each other")] = "doorbell"
    endpoints: Annotated[
        tuple[str, ...], Meta(description="shards to connect to; empty: the one in the run directory")
    ] = ()
    listen: Annotated[
        str | None,
        Meta(description="endpoint of this shard, e.g. tcp://127.0.0.1:7000; none: in the run directory"),
    ] = None
    curve_key: Annotated[
        str | None,
        Meta(description="file with the CURVE secret key of all shards, needed for tcp to other hosts"),
    ] = None
    threads: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="compute threads; none: the cores it may use")
    ] = None
    isa: Annotated[
        Literal["auto", "amx", "avx512_vnni", "avx512", "avx_vnni", "avx2", "generic"],
        Meta(description="best instruction set to use"),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "f32", "bf16"],
        Meta(description="element type on the hop; auto: f32 from a CPU, bf16 from a GPU"),
    ] = "auto"
    experts: Annotated[
        str, Meta(pattern=r"^(all|\d+-\d+)$", description="range of expert ids of this shard, e.g. 0-127")
    ] = "all"
    columns: Annotated[
        str,
        Meta(
            pattern=r"^(all|\d+-\d+)$",
            description="range of every expert's intermediate columns of this shard, e.g. 0-1023",
        ),
    ] = "all"
    cpus: Annotated[
        str,
        Meta(
            pattern=r"^(auto|\d+(-\d+)?(,\d+(-\d+)?)*)$",
            description="CPUs to compute on, e.g. 0-15,32; auto: one of each core that it may use",
        ),
    ] = "auto"
    node: Annotated[
        Annotated[int, Meta(ge=0, le=1023)] | None,
        Meta(description="NUMA node whose CPUs and memory this shard uses; none: all of them"),
    ] = None
    store: Annotated[
        Literal["auto", "tmpfs", "file", "private", "off"],
        Meta(
            description="where packed experts live: a tmpfs or a file keep them for the next start; off:"
            " the mapped model file itself; auto: a tmpfs if the model is large and fits"
        ),
    ] = "auto"
    store_dir: Annotated[
        str | None,
        Meta(
            description="directory of kept experts, on a tmpfs or hugetlbfs, or for `file` on a disk; none:"
            " /dev/shm/trimaran-experts-UID, or ~/.cache/trimaran"
        ),
    ] = None
    lock_memory: Annotated[bool, Meta(description="forbid swapping packed experts out")] = False
    connect_timeout_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="how long to wait for a shard to appear before giving up")
    ] = 60.0
    call_timeout_s: Annotated[
        float, Meta(gt=0, le=_DAY_S, description="longest time one layer call may take")
    ] = 30.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    model: Annotated[
        str, Meta(description="GGUF file, first of its split files, or `demo` for the bundled model")
    ] = "demo"
    precision: Annotated[
        Precision,
        Meta(
            description="activations of matrices on the CPU: int8 with a scale per 16 values is fast, off by"
            " about 0.5 % a matrix; exact: float32 (routed experts on AMX: 16 bits), and so are the KV cache"
            " and the latent up-projection. Weights of matrices are the file's own in both"
        ),
    ] = "int8"
    model_name: Annotated[str | None, Meta(description="name that clients use; none: from the file")] = None
    run_dir: Annotated[
        str | None, Meta(description="private directory of sockets and arenas; none: a fresh one")
    ] = None
    log_level: Annotated[LogLevel, Meta(description="least severe messages to log")] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], Meta(description="auto: text on a terminal, else json")
    ] = "auto"
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    attn: AttnConfig = field(default_factory=AttnConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
