"""GGUF model files: reading, writing, dequantisation and quantisation."""
