"""Causal language models: where they come from, their parts, residuals up to a hook point, tokens and windows."""
