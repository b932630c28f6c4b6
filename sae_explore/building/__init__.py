"""Making a bundle: request, stages, progress and resuming, estimate, the SAE's figures."""
