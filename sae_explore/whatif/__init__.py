"""Interventions: features switched off, turned up or patched inside a running model."""
