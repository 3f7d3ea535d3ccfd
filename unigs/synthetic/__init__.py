"""Synthetic data with known masks: scenes, and data sets in the genuine layouts."""

from unigs.synthetic.layouts import write_datasets
from unigs.synthetic.scenes import Scene, draw_scene, scene_seed

__all__ = ["Scene", "draw_scene", "scene_seed", "write_datasets"]
