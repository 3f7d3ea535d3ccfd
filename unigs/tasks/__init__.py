"""The four tasks: the table, the coarse masks, a picture made into a sample, and its classes."""

from unigs.tasks.classes import (
    BACKGROUND,
    UNKNOWN,
    ClassTable,
    list_classes,
    number_labels,
    paint_classes,
)
from unigs.tasks.recipes import (
    RECIPES,
    Recipe,
    english_list,
    list_inputs,
    list_misfits,
    speak_category,
    write_prompt,
)
from unigs.tasks.sample import TaskOptions, UnusableSample, crop_window, make_sample

__all__ = [
    "BACKGROUND",
    "RECIPES",
    "UNKNOWN",
    "ClassTable",
    "Recipe",
    "TaskOptions",
    "UnusableSample",
    "crop_window",
    "english_list",
    "list_classes",
    "list_inputs",
    "list_misfits",
    "make_sample",
    "number_labels",
    "paint_classes",
    "speak_category",
    "write_prompt",
]
