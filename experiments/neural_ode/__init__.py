"""Neural ODEs as a defence: CNN, ODENet, TisODE; denoising and randomisation (paper 001)."""
