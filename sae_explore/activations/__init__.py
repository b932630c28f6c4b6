"""From residuals to sparse activations and the store of them: which features fire on a token, on which tokens a feature fires."""
