"""DeepSeek's architecture (GGUF `deepseek2`): V2, V2-Lite, V3, R1 and the models that share it.

deepseek2  the whole forward pass        layer      one block
attention  multi-head latent attention   mla        its arithmetic, naive and absorbed
native_attention  the same in C++        query      projections of the query
rope       rotary embedding with YaRN    gate       which experts a token goes to
moe        gate, routed, shared experts  mlp        SwiGLU
linear     quantised and dense matrices  embedding  token vectors
norm       RMSNorm                       batch      the tokens of one step
step       what all layers share         scoring    log probabilities of prompts
kinds      interfaces and default implementations
"""
