"""OPEN: models, tokenizers and the prompt contract, with every known silent failure closed.

Knows model libraries; must not know stages, stores, runs or keys.
"""
