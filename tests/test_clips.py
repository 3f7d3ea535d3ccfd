"""Clips: a frame's past in its sample, ids that stay, and streams that go on bit for bit."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_parts import CLIPS, CODE, PICTURES, SIDE, build, make_dataset, say, write_davis
from PIL import Image

from unigs.annotations import find_sources, split_key
from unigs.batches import stack_samples
from unigs.codec.analog_bits import encode_bits
from unigs.images import encode_ids
from unigs.records import Annotated, Entity, Past, Skips, UnigsError
from unigs.shards import ShardReader, read_manifests
from unigs.shards.samples import DamagedSample, decode_sample, encode_sample
from unigs.systems.clips import ClipState, read_state, save_state
from unigs.systems.pix2seq_d.objective import Objective, encode_past, read_past, read_truth
from unigs.tasks import TaskOptions, UnusableSample, make_sample

GRID = (SIDE, SIDE)
RENAMED = torch.tensor([0, 9, 4, 15, 1, 12, 2])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_davis(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def samples(shards, model):
    dataset = make_dataset(shards, model)
    return [dataset[i].sample for i in range(12)]


def read_all(shards):
    manifests = read_manifests(str(shards))
    name = "davis-train"
    reader = ShardReader(manifests)
    sizes = manifests[name].sizes
    return [reader.read(name, s, k) for s in range(len(sizes)) for k in range(sizes[s])]


def find_ids(annotated, labels):
    """Annotation ids of labels by the record's own entities."""
    known = (*annotated.entities, *annotated.past.gone)
    return np.asarray([0, *(int(e.annotation_id) for e in known)])[labels]


def make_frame(present, past, gone=()) -> Annotated:
    """A record of 4 x 4 pixels whose rows have these labels."""
    labels = np.repeat(np.asarray(present, np.uint16)[:, None], 4, 1)
    maps = np.stack([np.repeat(np.asarray(one, np.uint16)[:, None], 4, 1) for one in past])
    count = int(labels.max())
    entity = lambda k: Entity(k, "object", "1", str(k), True)
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture, "PNG")
    known = tuple(entity(k) for k in range(1, count + 1))
    past_ = Past(maps, tuple(entity(k) for k in gone))
    return Annotated("c-00002", picture.getvalue(), labels, known, "background", "davis", past_)


def cut(annotated, index=0, **options):
    told = {"seed": 0, "vocabulary": (), "augment": False}
    return make_sample(annotated, "entity", index, options=TaskOptions(4, **options), **told)


# --- a frame and its past ---


def test_the_past_in_shards_is_what_the_frames_before_show(shards):
    records = read_all(shards)
    by_key = {record.key: record for record in records}
    gone = 0
    for record in records:
        clip, number = split_key(record.key)
        for back in (1, 2):
            before = by_key.get(f"{clip}-{number - back:05d}")
            seen = find_ids(record, record.past.labels[back - 1])
            expected = np.zeros_like(seen) if before is None else find_ids(before, before.labels)
            np.testing.assert_array_equal(seen, expected)
        gone += len(record.past.gone)
    assert gone  # objects leave in these clips
    assert any(record.past.labels[1].any() for record in records)


def test_frames_survive_their_shard_and_pictures_keep_their_bytes(shards):
    for record in read_all(shards)[:6]:
        again = decode_sample(encode_sample(record), "here")
        assert again.past.gone == record.past.gone
        np.testing.assert_array_equal(again.past.labels, record.past.labels)
        picture = encode_sample(replace(record, past=None))
        with tarfile.open(fileobj=io.BytesIO(picture + bytes(1024))) as tar:
            names = [name.partition(".")[2] for name in tar.getnames()]
        assert names == ["jpg", "json", "labels.png"]
        assert b"gone" not in picture
        assert decode_sample(picture, "here").past is None


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (Past(np.full((2, 4, 4), 9, np.uint16)), "expected past labels to 2, got 9"),
        (Past(np.zeros((2, 4, 5), np.uint16)), "expected labels of size"),
        (Past(np.zeros((2, 4, 4), np.uint16), (Entity(7, "o", "1", "7"),)), "expected label 3"),
    ],
)
def test_a_past_that_does_not_fit_is_a_damaged_sample(past, words):
    frame = replace(make_frame([0, 1, 2, 2], [[0] * 4] * 2), past=past)
    with pytest.raises(DamagedSample, match=words):
        decode_sample(encode_sample(frame), "here")


def test_of_an_unreadable_frame_nothing_is_known_and_it_is_counted_once(tmp_path):
    write_davis(tmp_path, clips=1, val_clips=1, frames=4)
    root = tmp_path / "davis"
    folder = next((root / "Annotations" / "480p").glob("scene-train-*"))
    (folder / "00001.png").write_bytes(b"none")
    Image.open(folder / "00002.png").resize((7, 5)).save(folder / "00002.png")
    source = next(one for one in find_sources(davis=root) if one.split == "train")
    skips = Skips()
    first, last = source.iterate(skips)
    assert skips.total == 2
    assert [split_key(one.key)[1] for one in (first, last)] == [0, 3]
    assert not last.past.labels.any()
    assert last.labels.shape == last.past.labels.shape[1:]


def test_a_changed_past_is_a_changed_input(tmp_path):
    write_davis(tmp_path, clips=1, val_clips=1, frames=4)
    source = next(one for one in find_sources(davis=tmp_path / "davis") if one.split == "train")
    names = [[path.name for path in source.inputs(i)] for i in range(4)]
    assert names[0] == ["00000.jpg", "00000.png"]
    assert names[3] == ["00003.jpg", "00003.png", "00002.png", "00001.png"]


# --- a sample ---


def test_picture_and_past_go_through_one_window(shards):
    """What a crop and a flip do to the frame, they do to a past that is the frame itself."""
    for index, record in enumerate(read_all(shards)[:8]):
        twin = replace(record, past=Past(np.stack([record.labels] * 2)))
        told = {"seed": 5, "vocabulary": (), "options": TaskOptions(24)}
        sample = make_sample(twin, "entity", index, augment=True, **told)
        np.testing.assert_array_equal(sample.past[0], sample.labels)
        np.testing.assert_array_equal(sample.past[1], sample.labels)
        assert sample.gone == ()


def test_objects_that_are_gone_are_numbered_on_and_no_more_than_ids():
    frame = make_frame([1, 2, 2, 0], [[3, 2, 1, 4], [1, 1, 2, 4]], gone=(3, 4))
    sample = cut(frame)
    assert sample.labels[:, 0].tolist() == [2, 1, 1, 0]  # the larger first
    assert sample.past[:, :, 0].tolist() == [[3, 1, 2, 4], [2, 2, 1, 4]]
    assert sample.gone == ("object", "object")
    assert cut(frame, max_painted=3).past[:, :, 0].tolist() == [[3, 1, 2, 0], [2, 2, 1, 0]]
    assert cut(frame, max_painted=2).past[:, :, 0].tolist() == [[0, 1, 2, 0], [2, 2, 1, 0]]


def test_an_empty_frame_is_a_sample_and_an_empty_picture_is_none():
    frame = make_frame([0] * 4, [[1, 1, 0, 0]] * 2, gone=(1,))
    sample = cut(frame)
    assert not sample.labels.any()
    assert not sample.ignored.any()
    assert sample.past.any()
    with pytest.raises(UnusableSample):
        cut(replace(frame, past=None))


def test_a_picture_among_frames_has_a_past_of_zeros(samples):
    picture = replace(samples[0], past=None, gone=())
    batch = stack_samples([samples[1], picture])
    assert batch.past.shape == (2, 2, *GRID)
    assert not batch.past[1].any()
    assert stack_samples([picture]).past is None
    assert batch.to("cpu").past is not None


# --- what is learnt ---


def test_one_id_serves_all_frames_of_a_sample(samples, model):
    batch = stack_samples(samples)
    truth = read_truth(batch, model.classes, CODE, model.objective, GRID, 2)
    moved = 0
    for row in range(len(batch)):
        labels = torch.cat((batch.labels[row][None], batch.past[row])).flatten()
        ids = torch.cat((truth.ids[row][None], truth.past[row, :, 1])).flatten()
        pairs = torch.stack((labels.long(), ids)).unique(dim=1)
        assert len(pairs[0].unique()) == len(pairs[1].unique()) == pairs.shape[1]
        moved += int((labels != ids).sum())
    assert moved
    assert torch.equal(truth.past[:, :, 0] > 0, truth.past[:, :, 1] > 0)


def test_a_picture_and_a_dropped_past_are_low_bits(samples, model):
    batch = stack_samples(samples)
    pictures = replace(batch, past=None, gone=[])
    truth = read_truth(batch, model.classes, CODE, Objective(past_dropped=1.0), GRID, 2)
    assert (encode_past(truth.past, CODE) == -CODE.scale).all()
    alone = read_truth(pictures, model.classes, CODE, Objective(), GRID, 2)
    before = read_truth(batch, model.classes, CODE, Objective(), GRID)
    for other in (alone, before):
        assert torch.equal(truth.ids, other.ids)
    dropped = model.denoiser.encode(batch.image, encode_past(truth.past, CODE))
    for one, other in zip(dropped, model.denoiser.encode(batch.image), strict=True):
        assert torch.equal(one, other)


def test_frames_are_dropped_alone_and_by_seed_and_index(samples, model):
    past = np.ones((2, *GRID), np.int32)
    many = [replace(samples[0], index=i, past=past, names=("object",)) for i in range(400)]
    told = (model.classes, Objective(past_dropped=0.2), (4, 4), 2)
    shown = read_past(stack_samples(many), *told).flatten(2).any(-1)
    assert (((~shown).double().mean(0) - 0.2).abs() < 0.06).all()
    assert abs(float((~shown).all(1).double().mean()) - 0.04) < 0.03
    few = read_past(stack_samples(many[7:9]), *told).flatten(2).any(-1)
    assert torch.equal(few, shown[7:9])


def test_the_loss_looks_back_and_moves_what_does(samples, model):
    batch = stack_samples(samples[:4])
    found = model.losses(batch)["bits"]
    other = replace(batch, past=batch.past.flip(-1))
    assert not torch.equal(found, model.losses(other)["bits"])
    found.sum().backward()
    weight = model.denoiser.decoder.conv_in.weight
    assert weight.grad[:, -2 * CODE.channels :].abs().sum() > 0
    model.zero_grad()


def test_a_model_of_pictures_does_not_see_the_past(samples):
    model = build(network=PICTURES)
    batch = stack_samples(samples[:4])
    alone = model.losses(replace(batch, past=None, gone=[]))["bits"]
    assert torch.equal(model.losses(batch)["bits"], alone)


def test_it_begins_as_the_model_of_pictures_that_it_was(samples, tmp_path):
    """Every figure of step 0 equal, though the classes are others and the past is shown."""
    pictures = build(network=PICTURES)
    pictures.make_predictor().save(str(tmp_path / "pictures"))
    clips = build(seed=9, start_from=str(tmp_path / "pictures"))
    batch = stack_samples(samples[:4])
    loss = clips.losses(replace(batch, past=batch.past.flip(-1)))["bits"]
    assert torch.equal(loss, clips.losses(replace(batch, past=batch.past * 0))["bits"])
    found, expected = (one.make_predictor()(batch) for one in (clips, pictures))
    assert torch.equal(found.labels, expected.labels)
    assert found.scores == expected.scores
    clips.make_predictor().save(str(tmp_path / "clips"))
    with pytest.raises(UnigsError, match=r"looks back at 0 frames or fewer, got 2.*past"):
        build(network=PICTURES, start_from=str(tmp_path / "clips"))


def test_ids_by_place_are_refused_over_clips():
    with pytest.raises(UnigsError, match=r"got place, at model.objective.ids"):
        build(objective=Objective(ids="place"))


# --- a stream ---


def draw_frames(count=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (1, 3, *GRID), dtype=torch.uint8, generator=generator)
            for _ in range(count)]  # fmt: skip


def follow_all(predictor, frames, state=None):
    state = ClipState() if state is None else state
    found = []
    for frame in frames:
        prediction, state = predictor.follow(frame, state)
        found.append(prediction)
    return found, state


def test_a_stream_that_was_cut_goes_on_bit_for_bit(model, tmp_path):
    frames, predictor = draw_frames(), model.make_predictor()
    whole, end = follow_all(predictor, frames)
    _, state = follow_all(predictor, frames[:2])
    save_state(state, tmp_path / "stream.safetensors")
    rest, again = follow_all(predictor, frames[2:], read_state(tmp_path / "stream.safetensors"))
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert one.scores == other.scores
    assert end.frame == again.frame == 5
    assert torch.equal(end.maps, again.maps)
    assert end.maps.shape == (2, 2, *GRID)  # however long the clip
    _, other = follow_all(predictor, frames[2:])
    assert not torch.equal(other.maps, end.maps)  # the past counts


def test_a_state_that_is_none_is_refused_in_words(tmp_path):
    path = tmp_path / "stream.safetensors"
    path.write_bytes(b"none")
    with pytest.raises(UnigsError, match=r"expected the state of a stream.*stream.safetensors"):
        read_state(path)


@pytest.mark.parametrize(
    ("frame", "maps"),
    [
        (0, torch.zeros(2, 2, 4, 4, dtype=torch.int64)),
        (1, torch.zeros(2, 3, 4, 4, dtype=torch.int64)),
        (1, torch.zeros(2, 4, 4, dtype=torch.int64)),
        (1, torch.zeros(2, 2, 4, 4)),
    ],
)
def test_a_state_of_other_maps_is_refused_in_words(tmp_path, frame, maps):
    save_state(ClipState(frame, maps), tmp_path / "stream.safetensors")
    with pytest.raises(UnigsError, match=r"maps int64 .*, got torch.*stream.safetensors"):
        read_state(tmp_path / "stream.safetensors")


def test_before_the_start_there_are_low_bits(model, monkeypatch):
    """The second frame sees the first as the nearest, and nothing behind it."""
    predictor, shown = model.make_predictor(), []
    first, second = draw_frames(2)
    _, state = predictor.follow(first, ClipState())
    whole = model.denoiser.encode

    def encode(image, past=None):
        shown.append(past)
        return whole(image, past)

    monkeypatch.setattr(model.denoiser, "encode", encode)
    predictor.follow(second, state)
    (past,) = shown
    assert torch.equal(past[:, :1], encode_past(state.maps[None], CODE))
    assert state.maps.any()
    assert (past[:, 1] == -CODE.scale).all()


def test_without_a_past_a_frame_is_the_picture(samples):
    for network in (CLIPS, PICTURES):
        predictor = build(network=network).make_predictor()
        batch = stack_samples(samples[:1])
        batch.index[0] = 7
        picture = predictor(batch)
        frame, state = predictor.follow(batch.image, ClipState(7))
        assert torch.equal(picture.labels > 0, frame.labels > 0)
        for label, score in enumerate(picture.scores[0], 1):
            where = picture.labels == label
            (kept,) = frame.labels[where].unique().tolist()
            assert torch.equal(frame.labels == kept, where)
            assert frame.scores[0][kept - 1] == score
            assert frame.names[0][kept - 1] == picture.names[0][label - 1]
        assert state.frame == 8


def test_later_frames_take_fewer_steps_and_the_first_of_a_picture_model_all(model, monkeypatch):
    counts = []
    for one in (model, build(network=PICTURES)):
        steps = []
        whole = one.denoiser.denoise

        def count(*args, steps=steps, whole=whole):
            steps.append(1)
            return whole(*args)

        monkeypatch.setattr(one.denoiser, "denoise", count)
        predictor, state = one.make_predictor(), ClipState()
        for frame in draw_frames(3):
            steps.clear()
            _, state = predictor.follow(frame, state)
            counts.append(len(steps))
    assert counts == [3, 2, 2, 3, 3, 3]


def test_one_that_knows_the_truth_gives_it_under_the_ids_of_the_past(samples, model, monkeypatch):
    """True past -> state -> bits -> sampler -> the truth, at every frame and under its own ids."""
    predictor = model.make_predictor()
    for sample in samples:
        batch = stack_samples([sample])
        names = [*sample.names, *sample.gone]
        state = predictor.recall(4, list(batch.past[0]), names, GRID)
        assert torch.equal(state.maps[:, 1], batch.past[0].long())
        assert state.frame == 4
        state = replace(state, maps=torch.stack((state.maps[:, 0], RENAMED[state.maps[:, 1]]), 1))
        labels = RENAMED[batch.labels.long()]
        bits = encode_bits((labels > 0).long(), labels, CODE)
        shown = []

        def denoise(noisy, gamma, features, tokens, bits=bits, shown=shown):
            shown.append(features)
            return say(bits)

        monkeypatch.setattr(model.denoiser, "denoise", denoise)
        prediction, after = predictor.follow(batch.image, state)
        assert torch.equal(prediction.labels.long(), labels)
        assert torch.equal(after.maps[0], torch.stack(((labels[0] > 0).long(), labels[0])))
        assert after.frame == 5
        assert torch.equal(after.maps[1], state.maps[0])
        seen = shown[0][:, -2 * CODE.channels :] * CODE.scale  # normalised
        torch.testing.assert_close(seen, encode_past(state.maps[None], CODE).flatten(1, 2))
        assert all(s == pytest.approx(1) for s, n in zip(prediction.scores[0], prediction.names[0])
                   if n)  # fmt: skip


def test_labels_that_no_id_holds_are_void(model):
    wide = torch.arange(20).reshape(4, 5).repeat(8, 7)[:32, :32]
    state = model.make_predictor().recall(1, [wide], ["object"] * 19, GRID)
    assert torch.equal(state.maps[0, 1], wide.where(wide <= 15, 0))
    assert torch.equal(state.maps[0, 0] > 0, state.maps[0, 1] > 0)


def test_a_frame_of_another_size_is_refused(model):
    predictor = model.make_predictor()
    _, state = follow_all(predictor, draw_frames(1))
    small = torch.zeros(1, 3, 16, 32, dtype=torch.uint8)
    with pytest.raises(UnigsError, match=r"size of those before.*32 x 32 cells, got 16 x 32"):
        predictor.follow(small, state)


def test_a_frame_of_no_entity_carries_an_empty_map(model, monkeypatch):
    predictor = model.make_predictor()
    void = encode_bits(*[torch.zeros(1, *GRID, dtype=torch.long)] * 2, CODE)
    monkeypatch.setattr(model.denoiser, "denoise", lambda *_: say(void))
    prediction, state = predictor.follow(draw_frames(1)[0], ClipState())
    assert not prediction.labels.any()
    assert prediction.scores == prediction.names == [[]]
    assert not state.maps.any()
    assert encode_ids(prediction.labels[0].numpy().astype(np.uint8))
