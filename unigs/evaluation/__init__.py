"""The paper's tables for any model, on fixed inputs (Sec. 4.1; after metrics, before training).

In: a ``Predictor`` and a validation set. Out: one row per picture, JSON, Markdown and an HTML
report. Modules, left to right:

- ``options``: what is asked, as the command line reads it.
- ``protocol``: which inputs; two models compare only on the same.
- ``predictors``: our pipeline, oracles (ceiling) and floors behind one interface; ``baselines``:
  other people's models behind the same, by the names of ``peers``.
- ``judging``: a batch and its prediction -> what is kept per picture.
- ``figures``: figures of any subset of the rows, and of bootstrap resamples of it.
- ``results``: rows on disk, resumable, and what is made of them.
- ``intervals``: of figures, and of the differences of two models.
- ``clips``: models that follow entities through clips, with rows of their own.
- ``tables``: what the report shows, with the paper's rows.
- ``run``: the loop, and the verb.
"""
