"""What samplers of latent diffusion models share."""
