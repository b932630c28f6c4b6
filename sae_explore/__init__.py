"""What do the features of a sparse autoencoder mean? Bundles, two methods and an explorer.

from sae_explore import open_bundle
"""

from sae_explore.bundle import Bundle, open_bundle

__all__ = ["Bundle", "open_bundle"]
__version__ = "0.1.0"
