"""Turn a base language model and a dataset into a fine-tuned, merged, quantized and tested model."""
