"""Synthetic data with known masks: scenes and clips, and data sets in the genuine layouts."""

from unigs.synthetic.clips import draw_clip, write_clips
from unigs.synthetic.layouts import write_datasets
from unigs.synthetic.scenes import Scene, draw_scene, scene_seed

__all__ = ["Scene", "draw_clip", "draw_scene", "scene_seed", "write_clips", "write_datasets"]
