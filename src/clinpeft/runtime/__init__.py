"""What makes a model fast or small: packed attention, fused LoRA, compilation, quantization."""
