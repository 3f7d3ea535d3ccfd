"""Each trap of the three formats, injected into a small data set: handled, or a counted skip."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask

from unigs.annotations import (
    read_coco_instances,
    read_coco_panoptic,
    read_entityseg,
    read_openimages,
)
from unigs.annotations.masks import read_counts
from unigs.images import decode_image, read_header
from unigs.records import Skips, UnigsError
from unigs.synthetic.polygons import encode_polygons, encode_rle, encode_runs

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]


def gradient(height=HEIGHT, width=WIDTH):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 12, x + y], -1).astype(np.uint8)


def box(top, left, bottom, right, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def save_picture(path, orientation=None, pixels=None):
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient() if pixels is None else pixels).save(
        path, "JPEG", quality=95, subsampling=0, exif=exif
    )


class Coco:
    """A small COCO folder under construction."""

    def __init__(self, root):
        self.root, self.images, self.annotations = root, [], []
        self.categories = CATEGORIES
        (root / "pictures").mkdir()
        (root / "masks").mkdir()

    def picture(self, image_id=1, name=None, *, file=True, **claims):
        name = name or f"{image_id}.jpg"
        self.images.append(
            {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT, **claims}
        )
        if file:
            save_picture(self.root / "pictures" / name)
        return self

    def entity(self, mask, image_id=1, category_id=1, form=encode_polygons, **others):
        segmentation = form(mask) if isinstance(mask, np.ndarray) else mask
        row = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": category_id}
        self.annotations.append({**row, "segmentation": segmentation, "iscrowd": 0, **others})
        return self

    def segments(self, ids, image_id=1, listed=None, **others):
        """A panoptic annotation: ids [H, W], ``listed`` (id, category, crowd)."""
        png = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(png).save(self.root / "masks" / f"{image_id}.png")
        rows = listed or [(int(k), 1, 0) for k in np.unique(ids) if k]
        infos = [{"id": k, "category_id": c, "iscrowd": crowd} for k, c, crowd in rows]
        row = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": infos}
        self.annotations.append({**row, **others})
        return self

    def write(self):
        tree = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        (self.root / "a.json").write_text(json.dumps(tree))
        return self.root / "a.json", self.root / "pictures"

    def instances(self):
        skips = Skips()
        samples = list(read_coco_instances(*self.write(), skips))
        return samples, dict(skips.counts)

    def panoptic(self):
        skips = Skips()
        path, pictures = self.write()
        samples = list(read_coco_panoptic(path, self.root / "masks", pictures, skips))
        return samples, dict(skips.counts)


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path)


# Mask forms and overlaps --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [encode_polygons, encode_runs, encode_rle])
def test_every_form_of_a_mask_gives_the_same_pixels(coco, form):
    mask = box(2, 3, 9, 25) ^ box(4, 5, 6, 12) ^ box(15, 0, 20, 2)  # a hole, two parts, one corner
    (sample,), skipped = coco.picture().entity(mask, form=form).instances()
    np.testing.assert_array_equal(sample.labels == 1, mask)
    assert skipped == {}


def test_runs_go_down_the_columns(coco):
    """Against an independent decoder: transposed reshape."""
    counts = [25, 7, 13, 4, HEIGHT * WIDTH - 49]
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    runs = {"size": [HEIGHT, WIDTH], "counts": counts}
    (sample,), _ = coco.picture().entity(runs).instances()
    np.testing.assert_array_equal(sample.labels, flat.reshape(WIDTH, HEIGHT).T)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_compressed_runs_are_read_as_pycocotools_writes_them(mask):
    runs = encode_runs(mask)
    data = coco_mask.frPyObjects(runs, *mask.shape)["counts"]
    assert read_counts(data).tolist() == runs["counts"]
    np.testing.assert_array_equal(read_counts(encode_rle(mask)["counts"].encode()), runs["counts"])


def test_long_runs_are_read(coco):
    counts = [0, 5_000_000, 3, 12_000_000, 70_000_000, 1, 2]
    runs = {"counts": counts, "size": [1, sum(counts)]}
    data = coco_mask.frPyObjects(runs, 1, sum(counts))["counts"]
    assert read_counts(data).tolist() == counts


@pytest.mark.parametrize("cut", range(1, 6))
def test_runs_cut_short_are_counted(coco, cut):
    rle = encode_rle(box(2, 3, 9, 25))
    broken = {**rle, "counts": rle["counts"][:-cut]}
    (sample,), skipped = coco.picture().entity(box(0, 0, 2, 2)).entity(broken).instances()
    assert len(sample.entities) == 1
    assert skipped == {"entity with a broken mask": 1}


def test_small_lies_over_large_whatever_the_order(coco):
    small, large = box(5, 5, 8, 8), box(2, 2, 15, 20)
    for image_id, masks in ((1, (small, large)), (2, (large, small))):
        coco.picture(image_id)
        for mask in masks:
            coco.entity(mask, image_id)
    samples, skipped = coco.instances()
    for sample, (little, big) in zip(samples, ((1, 2), (2, 1)), strict=True):
        np.testing.assert_array_equal(sample.labels == little, small)
        np.testing.assert_array_equal(sample.labels == big, large & ~small)
    assert skipped == {}


def test_crowds_lie_lowest_even_when_smaller(coco):
    crowd, cat = box(5, 5, 8, 8), box(2, 2, 7, 20)
    coco.picture().entity(crowd, iscrowd=1, form=encode_runs, id=900100005001).entity(cat)
    (sample,), skipped = coco.instances()
    assert [e.is_crowd for e in sample.entities] == [True, False]
    assert sample.entities[0].annotation_id == "900100005001"
    np.testing.assert_array_equal(sample.labels == 1, crowd & ~cat)
    np.testing.assert_array_equal(sample.labels == 2, cat)
    assert skipped == {}


def test_hidden_entities_are_counted_and_numbers_have_no_gaps(coco):
    mask = box(3, 3, 9, 9)
    coco.picture().entity(mask).entity(mask).entity(box(12, 12, 15, 15), category_id=7)
    (sample,), skipped = coco.instances()
    assert skipped == {"entity hidden by others": 1}
    assert [e.label for e in sample.entities] == [1, 2]
    assert [e.category for e in sample.entities] == ["cat", "sky"]
    np.testing.assert_array_equal(sample.labels, mask + 2 * box(12, 12, 15, 15))


BAD_MASKS = {
    "entity without a mask": [None, [], {}],
    "entity with polygons of fewer than three points": [[[1, 2, 9, 9]], [[1, 2, 3, 4], [5, 6]]],
    "entity with an empty mask": [
        [[5.0, 5.0, 9.0, 5.0, 5.0, 5.0]],
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        encode_rle(np.zeros((HEIGHT, WIDTH), bool)),
    ],
    "entity with a broken mask": [
        {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
        {"size": [HEIGHT, WIDTH], "counts": [-5, 605]},
        {"size": [HEIGHT, WIDTH], "counts": [10**9, 5]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzzzzzzzzzzzz"},
        {"size": [HEIGHT, WIDTH], "counts": {"a": 1}},
        {"size": [HEIGHT, WIDTH]},
        [["a", "b", "c", "d", "e", "f"]],
        [[1, 2, 3, 4, 5, None]],
        "text",
        17,
    ],
    "entity with a mask of another size than its picture": [
        encode_rle(np.ones((HEIGHT, WIDTH + 1), bool)),
    ],
}


@pytest.mark.parametrize(
    ("reason", "segmentation"), [(why, bad) for why, all in BAD_MASKS.items() for bad in all]
)
def test_bad_masks_are_counted_and_the_rest_is_kept(coco, reason, segmentation):
    good = box(2, 2, 9, 9)
    coco.picture().entity(good, form=encode_rle).entity(segmentation)
    (sample,), skipped = coco.instances()
    np.testing.assert_array_equal(sample.labels, good)
    assert skipped == {reason: 1}


def test_a_picture_without_usable_entities_is_counted(coco):
    samples, skipped = coco.picture().entity([[1, 2, 3, 4]]).instances()
    assert samples == []
    assert skipped["no entity left in the picture"] == 1


# Ids, tables, rows --------------------------------------------------------------------------------


def test_unlisted_categories_and_repeated_names(coco):
    coco.categories = [*CATEGORIES, {"id": 9, "name": " cat ", "isthing": 1}]
    coco.picture().entity(box(1, 1, 5, 5)).entity(box(6, 6, 9, 9), category_id=9)
    coco.entity(box(11, 11, 15, 15), category_id=5)
    (sample,), skipped = coco.instances()
    assert [(e.category, e.category_id) for e in sample.entities] == [("cat", "1"), ("cat", "9")]
    assert skipped == {"entity of a category not listed": 1}


def test_text_ids_zero_ids_and_repeated_ids(coco):
    coco.picture("x7").entity(box(1, 1, 5, 5), "x7", id=0).entity(box(6, 6, 9, 9), "x7", id=0)
    (sample,), skipped = coco.instances()
    assert len({e.annotation_id for e in sample.entities}) == 2
    assert sample.entities[0].annotation_id == "0"
    assert skipped == {}


def test_pictures_listed_twice_and_strays_are_counted(coco):
    coco.picture(1).picture(1).picture(2, "1.jpg", file=False).picture(3)
    coco.entity(box(1, 1, 5, 5)).entity(box(1, 1, 5, 5), 2).entity(box(1, 1, 5, 5), 99)
    samples, skipped = coco.instances()
    assert [sample.key for sample in samples] == ["1"]
    assert skipped == {
        "picture listed twice": 2,
        "picture without annotations": 1,
        "annotation of a picture not listed": 2,
    }


def test_annotations_may_come_before_pictures(coco):
    coco.picture(2).picture(1).entity(box(1, 1, 5, 5), 2).entity(box(6, 6, 9, 9), 1)
    path, pictures = coco.write()
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(tree.items()))))
    samples = list(read_coco_instances(path, pictures, Skips()))
    np.testing.assert_array_equal(samples[0].labels, box(6, 6, 9, 9))
    np.testing.assert_array_equal(samples[1].labels, box(1, 1, 5, 5))


def test_names_with_dots_folders_and_letters_beyond_ascii(coco):
    names = ["a.b.jpg", "a_b.jpg", "f/a.jpg", "f-a.jpg", "blå bær.jpg"]
    for k, name in enumerate(names):
        coco.picture(k, name).entity(box(1, 1, 5, 5), k)
    samples, skipped = coco.instances()
    assert len({sample.key for sample in samples}) == len(names)
    assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
    assert skipped == {}


@pytest.mark.parametrize(
    ("section", "row"),
    [
        ("images", {"id": 3}),
        ("images", "1.jpg"),
        ("categories", {"name": "cat"}),
        ("annotations", [1, 2]),
        ("annotations", {"id": 3}),
        ("annotations", {"image_id": 1, "segments_info": []}),
    ],
)
def test_rows_of_another_form_are_named(coco, section, row):
    coco.categories = [*CATEGORIES]
    coco.picture().entity(box(1, 1, 5, 5))
    getattr(coco, section).append(row)
    with pytest.raises(UnigsError, match=rf"expected a row of {section} .* at byte \d+ of"):
        coco.instances()


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "picture file missing"),
        (lambda p: p.write_bytes(b""), "picture file empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:-300]), "picture unreadable"),
        (lambda p: p.write_text("html"), "picture unreadable"),
        (
            lambda p: save_picture(p, pixels=gradient(HEIGHT, WIDTH + 1)),
            "picture and masks differ in size",
        ),
        (  # turned, and no tag to tell how
            lambda p: save_picture(p, pixels=gradient(WIDTH, HEIGHT)),
            "picture and masks differ in size",
        ),
    ],
)
def test_bad_pictures_are_counted_and_the_next_is_read(coco, damage, reason):
    for image_id in (1, 2):
        coco.picture(image_id).entity(box(1, 1, 5, 5), image_id)
    damage(coco.root / "pictures" / "1.jpg")
    samples, skipped = coco.instances()
    assert [sample.key for sample in samples] == ["2"]
    assert skipped == {reason: 1}


@pytest.mark.parametrize("name", ["../secret.jpg", "/tmp/secret.jpg"])
def test_names_do_not_leave_the_folder(coco, name):
    samples, skipped = coco.picture(1, name, file=False).entity(box(1, 1, 5, 5)).instances()
    assert samples == []
    assert skipped == {"picture outside of its folder": 1}


@pytest.mark.parametrize("claims", [{"width": 0, "height": 0}, {"width": 5, "height": 5}])
def test_a_wrong_size_in_the_json_does_not_matter_to_run_lengths(coco, claims):
    mask = box(1, 1, 9, 5)
    (sample,), skipped = coco.picture(**claims).entity(mask, form=encode_rle).instances()
    np.testing.assert_array_equal(sample.labels, mask)
    assert skipped == {}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_stored_pixels_are_the_truth_and_the_tag_goes(coco, orientation):
    mask = box(1, 1, 9, 5)
    coco.picture().entity(mask)
    save_picture(coco.root / "pictures" / "1.jpg", orientation)
    (sample,), skipped = coco.instances()
    assert read_header(sample.image).orientation == 1
    stored = decode_image((coco.root / "pictures" / "1.jpg").read_bytes())
    np.testing.assert_array_equal(decode_image(sample.image), stored)
    np.testing.assert_array_equal(sample.labels, mask)
    assert skipped == {}


def test_a_picture_annotated_turned_is_turned(coco):
    """Orientation 6 is shown a quarter clockwise; masks drawn on what was shown."""
    mask = box(3, 2, 20, 9, WIDTH, HEIGHT)
    coco.picture(width=HEIGHT, height=WIDTH).entity(mask)
    save_picture(coco.root / "pictures" / "1.jpg", 6)
    (sample,), skipped = coco.instances()
    np.testing.assert_array_equal(sample.labels, mask)
    shown = np.rot90(gradient(), -1).astype(int)
    assert np.abs(decode_image(sample.image) - shown).mean() < 3
    assert read_header(sample.image).orientation == 1
    assert skipped == {}


def test_a_picture_is_what_it_contains_not_what_it_is_called(coco):
    coco.picture(1, "png.jpg").entity(box(1, 1, 5, 5))
    grey = Image.fromarray(gradient()).convert("L")
    grey.save(coco.root / "pictures" / "png.jpg", "PNG")
    (sample,), skipped = coco.instances()
    assert decode_image(sample.image).shape == (HEIGHT, WIDTH, 3)
    assert skipped == {}


# Panoptic -----------------------------------------------------------------------------------------


def test_panoptic_ids_pass_eight_bits_and_repeat_between_pictures(coco):
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[2:9, 3:12], ids[10:, :] = 16_777_215, 255 + 256 * 254
    coco.picture(1).segments(ids, 1, [(16_777_215, 1, 0), (255 + 256 * 254, 7, 0)])
    coco.picture(2).segments(ids, 2, [(16_777_215, 7, 0), (255 + 256 * 254, 1, 1)])
    (first, second), skipped = coco.panoptic()
    np.testing.assert_array_equal(first.labels == 1, ids == 16_777_215)
    np.testing.assert_array_equal(first.labels == 2, ids == 255 + 256 * 254)
    assert first.labels.tobytes() == second.labels.tobytes()
    assert [(e.category, e.is_thing) for e in first.entities] == [("cat", True), ("sky", False)]
    assert [(e.category, e.is_crowd) for e in second.entities] == [("sky", False), ("cat", True)]
    assert [e.annotation_id for e in first.entities] == ["16777215", str(255 + 256 * 254)]
    assert {first.unlabelled, second.unlabelled} == {"void"}
    assert skipped == {}


def test_panoptic_lists_that_do_not_fit_the_png(coco):
    ids = np.full((HEIGHT, WIDTH), 300)
    ids[:3], ids[3:5] = 400, 500
    listed = [(300, 1, 0), (300, 7, 0), (600, 1, 0), (0, 1, 0), (500, 44, 0), (None, 1, 0)]
    (sample,), skipped = coco.picture().segments(ids, 1, listed).panoptic()
    np.testing.assert_array_equal(sample.labels == 1, ids == 300)
    assert len(sample.entities) == 1
    assert skipped == {
        "segment with an impossible or repeated id": 3,
        "segment without a pixel": 1,
        "segment in the PNG that the JSON does not list": 2,
        "entity of a category not listed": 1,
    }


def test_missing_pngs_stop_the_run_with_the_known_cause(coco):
    for image_id in (1, 2, 3):
        coco.picture(image_id).segments(np.full((HEIGHT, WIDTH), 300), image_id)
    (coco.root / "masks" / "2.png").unlink()
    with pytest.raises(UnigsError, match=r"expected 3 PNGs, came 2.*2\.png.*52,751"):
        coco.panoptic()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "segment-id PNG unreadable"),
        (lambda p: Image.open(p).convert("L").save(p), "segment-id PNG without colours"),
        (
            lambda p: Image.open(p).resize((9, 9), 0).save(p),
            "picture and masks differ in size",
        ),
    ],
)
def test_bad_pngs_are_counted(coco, damage, reason):
    for image_id in (1, 2):
        coco.picture(image_id).segments(np.full((HEIGHT, WIDTH), 300), image_id)
    damage(coco.root / "masks" / "1.png")
    samples, skipped = coco.panoptic()
    assert [sample.key for sample in samples] == ["2"]
    assert skipped == {reason: 1}


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_resaved_pngs_keep_their_ids(coco, mode):
    ids = np.where(box(3, 3, 9, 9), 70_000, 300)
    coco.picture().segments(ids)
    path = coco.root / "masks" / "1.png"
    Image.open(path).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    (sample,), skipped = coco.panoptic()
    np.testing.assert_array_equal(sample.labels == 2, ids == 70_000)
    assert skipped == {}


def test_second_annotation_of_a_picture_is_counted(coco):
    coco.picture().segments(np.full((HEIGHT, WIDTH), 300))
    coco.annotations *= 2
    (_,), skipped = coco.panoptic()
    assert skipped == {"second annotation of a picture": 1}


# EntitySeg ----------------------------------------------------------------------------------------


def test_entityseg_panoptic_names_the_picture_where_coco_names_the_png(coco):
    ids = np.where(box(3, 3, 9, 9), 70_000, 300)
    coco.categories = [
        {"id": 0, "name": "unknown", "type": "thing"},
        {"id": 1, "name": " folder", "type": "thing"},
        {"id": 7, "name": "sea", "type": "stuff"},
    ]
    coco.picture(1, "entity_01_11580/a.b.jpg")
    coco.segments(ids, 1, [(300, 7, 0), (70_000, 0, 0)], file_name="entity_01_11580/a.b.jpg")
    (coco.root / "masks" / "1.png").rename(coco.root / "masks" / "a.png")
    path, pictures = coco.write()
    skips = Skips()
    (sample,) = read_entityseg(path, pictures, skips, masks=coco.root / "masks")
    assert (sample.source, sample.unlabelled) == ("entityseg-panoptic", "unannotated")
    assert [(e.category, e.is_thing) for e in sample.entities] == [
        ("sea", False),
        ("unknown", None),
    ]
    assert skips.total == 0


def test_entityseg_reduced_files_do_not_go_with_full_pictures(coco):
    coco.picture().entity(np.ones((HEIGHT // 2, WIDTH // 2), bool), form=encode_rle)
    skips = Skips()
    assert list(read_entityseg(*coco.write(), skips)) == []
    assert dict(skips.counts) == {"picture and masks differ in size": 1}


def test_blanks_in_names_are_stripped(coco):
    coco.categories = [{"id": 1, "name": " folder", "type": "thing"}]
    (sample,), _ = coco.picture().entity(box(1, 1, 5, 5)).instances()
    assert sample.entities[0].category == "folder"


# Open Images --------------------------------------------------------------------------------------

IMAGE_ID = "0e12345678901234"
MIDS = ("/m/01_5g", "/m/04yx4", "/g/11x")


class OpenImages:
    """A small Open Images folder under construction."""

    def __init__(self, root):
        self.root, self.rows = root, []
        self.classes = f"{MIDS[0]},Chopsticks\n{MIDS[1]},Man\n"
        save_picture(root / "pictures" / f"{IMAGE_ID}.jpg")
        (root / "masks").mkdir()

    def entity(self, mask, mid=MIDS[0], file=True, mode="1"):
        box_id = f"{len(self.rows):08x}"
        name = f"{IMAGE_ID}_{mid.replace('/', '')}_{box_id}.png"
        if file:
            Image.fromarray(mask).convert(mode).save(self.root / "masks" / name)
        self.rows.append(f"{name},{IMAGE_ID},{mid},{box_id},0,1,0,1,0.9,0.5 0.5 1;0.1 0.1 0")
        return self

    def read(self, header=None):
        usual = (
            "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
        )
        (self.root / "rows.csv").write_text("\r\n".join([header or usual, *self.rows, ""]))
        (self.root / "classes.csv").write_text(self.classes)
        skips = Skips()
        samples = list(
            read_openimages(
                self.root / "rows.csv",
                self.root / "masks",
                self.root / "pictures",
                self.root / "classes.csv",
                skips,
            )
        )
        return samples, dict(skips.counts)


@pytest.fixture
def openimages(tmp_path):
    return OpenImages(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (47, 31), (60, 41), (23, 15)])
def test_masks_of_any_size_come_to_the_pictures(openimages, size, mode):
    """Against the rule itself: the mask's pixel under each picture pixel's centre."""
    width, height = size
    mask = box(3, 5, height - 2, width - 4, height, width)
    (sample,), skipped = openimages.entity(mask, mode=mode).read()
    rows = ((np.arange(HEIGHT) + 0.5) * height / HEIGHT).astype(int)
    columns = ((np.arange(WIDTH) + 0.5) * width / WIDTH).astype(int)
    np.testing.assert_array_equal(sample.labels == 1, mask[np.ix_(rows, columns)])
    assert sample.unlabelled == "unannotated"
    assert sample.key == IMAGE_ID
    assert skipped == {}


@pytest.mark.parametrize(
    ("mask", "options", "reason"),
    [
        (box(0, 0, 0, 0), {}, "entity with an empty mask"),
        (box(0, 0, 1, 1, 400, 600), {}, "mask empty after resizing"),
        (box(0, 0, 5, 5, WIDTH, HEIGHT), {}, "mask of another shape than its picture"),
        (box(0, 0, 5, 5), {"file": False}, "mask file missing"),
        (box(0, 0, 5, 5), {"mid": MIDS[2]}, "entity of a category not listed"),
    ],
)
def test_bad_rows_are_counted_and_the_rest_is_kept(openimages, mask, options, reason):
    openimages.entity(box(9, 9, 15, 15)).entity(mask, **options)
    (sample,), skipped = openimages.read()
    np.testing.assert_array_equal(sample.labels, box(9, 9, 15, 15))
    assert skipped == {reason: 1}


def test_damaged_masks_and_short_rows_are_counted(openimages):
    openimages.entity(box(9, 9, 15, 15)).entity(box(0, 0, 5, 5))
    path = openimages.root / "masks" / openimages.rows[1].split(",")[0]
    path.write_bytes(path.read_bytes()[:40])
    openimages.rows.append(f"x,{IMAGE_ID}")
    (sample,), skipped = openimages.read()
    assert len(sample.entities) == 1
    assert skipped == {"mask unreadable": 1, "row with too few columns": 1}


@pytest.mark.parametrize(
    "header", ["", "id,name\n", "LabelName,DisplayName\r\n", "\ufeff", "\ufeffLabelName,x\n"]
)
def test_class_files_with_and_without_header(openimages, header):
    openimages.classes = f'{header}{MIDS[0]},Chopsticks,x\r\n{MIDS[1]},"Man, old"\r\n'
    openimages.entity(box(1, 1, 5, 5)).entity(box(9, 9, 15, 15), MIDS[1])
    (sample,), skipped = openimages.read()
    assert [(e.category, e.category_id) for e in sample.entities] == [
        ("Chopsticks", MIDS[0]),
        ("Man, old", MIDS[1]),
    ]
    assert skipped == {}


def test_columns_are_found_by_name(openimages):
    openimages.entity(box(1, 1, 5, 5))
    fields = next(csv.reader(io.StringIO(openimages.rows[0])))
    openimages.rows = [",".join([fields[2], fields[3], fields[0], fields[1]])]
    (sample,), skipped = openimages.read("LabelName,BoxID,MaskPath,ImageID")
    np.testing.assert_array_equal(sample.labels, box(1, 1, 5, 5))
    assert skipped == {}


def test_a_csv_without_header_is_named(openimages):
    openimages.entity(box(1, 1, 5, 5))
    with pytest.raises(UnigsError, match=r"expected a header with .*rows\.csv"):
        openimages.read(header=openimages.rows[0])


def test_a_class_file_without_classes_is_named(openimages):
    openimages.classes = "nothing\n"
    with pytest.raises(UnigsError, match=r"expected rows of MID and name.*classes\.csv"):
        openimages.entity(box(1, 1, 5, 5)).read()


def test_openimages_tags_go_without_turning(openimages):
    save_picture(openimages.root / "pictures" / f"{IMAGE_ID}.jpg", 6)
    (sample,), skipped = openimages.entity(box(1, 1, 5, 5)).read()
    assert read_header(sample.image).orientation == 1
    assert decode_image(sample.image).shape[:2] == (HEIGHT, WIDTH) == sample.labels.shape
    assert skipped == {}
