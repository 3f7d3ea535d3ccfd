"""The page of ``unigs demo``: the task verbs in a browser, for whoever may open it.

In: uploads, brush strokes and words. Out: what ``unigs segment``, ``find``, ``inpaint`` and
``paint`` answer to them, by the same functions and in the same files. ``uploads`` and ``strokes``
are pixels in, pixels out; ``desk`` carries requests out; ``page`` alone knows gradio's components;
``serve`` is the verb.
"""
