"""Fine-tune, merge, quantize and test a language model."""
