"""What the names in KTransformers' rules files are here.

Its files name Python classes: the one that a module has in the model's PyTorch code (`match.class`), the
operator that takes its place (`replace.class`), and kernels (`generate_op`, `prefill_op`, `backend`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Kinds = frozenset[str]
_OPERATORS = "ktransformers.operators"


def _model_classes() -> dict[str, Kinds]:
    """Classes of DeepSeek's models, in each of the files that they are found in."""
    parts = {
        "Attention": "attention",
        "DecoderLayer": "layer",
        "MLP": "mlp",
        "MoE": "moe",
        "Model": "model",
        "RMSNorm": "norm",
        "RotaryEmbedding": "rope",
        "YarnRotaryEmbedding": "rope",
        "TopkRouter": "gate",
    }
    files = (
        "ktransformers.models.modeling_deepseek",
        "ktransformers.models.modeling_deepseek_v3",
        "ktransformers.models.modeling_deepseekv3",
        "transformers.models.deepseek_v2.modeling_deepseek_v2",
        "transformers.models.deepseek_v3.modeling_deepseek_v3",
    )
    named = {
        f"{file}.{family}{part}": frozenset({kind})
        for file in files
        for family in ("DeepseekV2", "DeepseekV3")
        for part, kind in parts.items()
    }
    return named | {f"{file}.MoEGate": frozenset({"gate"}) for file in files}


def _operators(file: str, kinds: Kinds, *names: str) -> dict[str, Kinds]:
    return {f"{_OPERATORS}.{file}.{name}": kinds for name in names}


MATCH_CLASSES: Mapping[str, Kinds] = MappingProxyType(
    {
        "torch.nn.Linear": frozenset({"linear", "head", "maps"}),
        "torch.nn.Embedding": frozenset({"embedding"}),
        **_model_classes(),
    }
)
"""`match.class` to the kinds of modules that it means."""

REPLACE_CLASSES: Mapping[str, Kinds] = MappingProxyType(
    _operators("linear", frozenset({"linear", "head", "maps"}), "KTransformersLinear")
    | _operators("experts", frozenset({"experts"}), "KTransformersExperts", "KTransformersExpertsV2")
    | _operators(
        "experts",
        frozenset({"moe"}),
        "KDeepseekV2MoE",
        "KDeepseekV3MoE",
        "KDeepseekV3MoEV2",
    )
    | _operators(
        "attention",
        frozenset({"attention"}),
        "KDeepseekV2Attention",
        "KDeepseekV3Attention",
        "flashinfer_attn",
    )
    | _operators(
        "balance_serve_attention", frozenset({"attention"}), "flashinfer_attn", "deepseek_torch_attn"
    )
    | _operators("gate", frozenset({"gate"}), "KMoEGate", "KMoEGateDeepSeekV3")
    | _operators(
        "RoPE",
        frozenset({"rope"}),
        "RotaryEmbedding",
        "RotaryEmbeddingV2",
        "RotaryEmbeddingV3",
        "YarnRotaryEmbedding",
        "YarnRotaryEmbeddingV3",
    )
    | _operators("models", frozenset({"model"}), "KDeepseekV2Model")
    | _operators("layernorm", frozenset({"norm"}), "RMSNorm", "DeepseekV3RMSNormTorch", "KDeepseekRMSNormV3")
    | _operators("mlp", frozenset({"mlp"}), "kDeepseekV3MLP", "KDeepseekV3MLP")
)
"""`replace.class` to the kinds of modules that it can take the place of."""

LINEAR_OPS: Mapping[str, str] = MappingProxyType(
    {
        "KLinearMarlin": "gpu",
        "VLinearMarlin": "gpu",
        "KLinearFP8": "gpu",
        "KLinearTorch": "dense",
        "VLinearTorch": "dense",
        "KLinearCPUInfer": "packed",
        "KLinearQ8": "packed",
    }
)
"""Kernels of matrices to implementations."""

EXPERT_OPS = frozenset({"KExpertsCPU", "KExpertsTorch", "KExpertsMarlin", "KSFTExpertsCPU"})
EXPERT_BACKENDS = frozenset({"llamafile", "AMXInt4", "AMXInt8", "AMXBF16", "FP8"})

WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "per_layer_prefill_intput_threshold": "attn.stream_prefill sends long prompts' experts to a GPU",
        "n_deferred_experts": "attn.defer_experts is how many experts are deferred",
        "backend": "the expert service computes from the file's own weights; experts.isa chooses among the"
        " kernels that the CPU has",
        "chunck_size": "attn.max_step_tokens is how long the chunks of a prompt are",
        "use_cuda_graph": "attn.cuda_graphs says whether steps are recorded",
        "cpu_embed": "the table of the embeddings is always read from the mapped file",
    }
)
"""Arguments of operators that are no module's business here, and what has their place."""
