"""Madry's MNIST table: adversarial training against PGD in an linf ball of 0.3."""
