"""Second-order attack, smoothing certificates and stability training (paper 000)."""
