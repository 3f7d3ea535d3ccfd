"""UniGS: one diffusion model that generates images and segments them, in one representation."""

__version__ = "0.1.0"
