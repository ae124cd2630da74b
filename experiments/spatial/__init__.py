"""Paper 002: spatial attacks, lower and upper bounds of what they do, and training against them."""
