"""UniGS: one latent-diffusion UNet denoises a picture and a colormap of its entities together."""
