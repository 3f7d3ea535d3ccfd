"""The four tasks: the table, the coarse masks, and a picture made into a sample."""

from unigs.tasks.recipes import (
    RECIPES,
    Recipe,
    english_list,
    speak_category,
    write_prompt,
)
from unigs.tasks.sample import TaskOptions, UnusableSample, make_sample

__all__ = [
    "RECIPES",
    "Recipe",
    "TaskOptions",
    "UnusableSample",
    "english_list",
    "make_sample",
    "speak_category",
    "write_prompt",
]
