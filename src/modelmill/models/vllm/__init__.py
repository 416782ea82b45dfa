"""A process in which vLLM answers prompts, and what it is told."""
