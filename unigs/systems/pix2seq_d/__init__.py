"""Pix2Seq-D: a label map with classes, as bits that a diffusion model generates (2210.06366)."""
