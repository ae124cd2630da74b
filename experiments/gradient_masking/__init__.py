"""Paper 001's case study in small: defences that only hide their gradients, found and cured."""
