"""DeepSeek's architecture (GGUF `deepseek2`): V2, V2-Lite, V3, R1 and the models that share it.

deepseek2  the whole forward pass        layer      one block
attention  multi-head latent attention   mla        its arithmetic, naive and absorbed
rope       rotary embedding with YaRN    gate       which experts a token goes to
moe        gate, routed, shared experts  mlp        SwiGLU
linear     quantised and dense matrices  embedding  token vectors
norm       RMSNorm                       batch      the tokens of one step
kinds      interfaces and default implementations
"""
