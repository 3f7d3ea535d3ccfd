"""How well a prediction agrees with the truth (paper, Sec. 4.1; definitions in each docstring).

Nothing is imported here, so that a training run loads no evaluation network:

- ``overlaps``: one joint histogram per image, which every mask metric below reads.
- ``tally``: a metric as a vector that pictures and ranks add up.
- ``segmentation``: entity mIoU and recall; cIoU and gIoU for referring.
- ``average_precision``: AP^e with AP50, AP75 and by size.
- ``panoptic``: class-agnostic PQ, SQ, RQ; boundary IoU.
- ``classes``: class mIoU, mAcc and PQ of masks with names.
- ``clips``: J&F and id switches of videos.
- ``bootstrap``: resamples of pictures, and intervals.
- ``frechet``, ``clip_score``: FID and CLIP score (extra ``eval``); ``segmenter``: Mask2Former
  and others.
"""
