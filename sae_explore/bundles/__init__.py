"""Bundles: opened, checked, chosen, loaded with their models, pushed and pulled."""
