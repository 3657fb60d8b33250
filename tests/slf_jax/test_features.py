import jax
import numpy as np
import pytest
from PIL import Image
from records import make_clip

from slf_common.errors import UserError
from slf_jax import features
from tfrecords.reader import Clips, stack
from tfrecords.schema import AUDIO_CONSTITUENTS, CONTINUOUS, EMBEDDING, Constituent, Schema

FULL = Schema(AUDIO_CONSTITUENTS)
LAYOUT = features.make_layout(FULL)
STATISTICS = {
    part.name: {"mean": np.full(part.width, 1.0, np.float32), "std": np.full(part.width, 2.0, np.float32)}
    for part in AUDIO_CONSTITUENTS
}
ASSEMBLE = jax.jit(lambda clips: features.assemble(clips, LAYOUT, STATISTICS))


def full_clip(seed=0):
    rng = np.random.default_rng(seed)
    clip = {part.name: rng.normal(size=(part.rows, part.width)).astype(np.float32) for part in AUDIO_CONSTITUENTS}
    clip |= {"age": np.float32(40), "gender": np.int32(1), "ethnicity": np.int32(2), "language": np.int32(11)}
    return clip


def assemble(clip):
    matrix, mask = ASSEMBLE(stack([clip]))
    return np.array(matrix[0]), np.array(mask[0])


def test_row_counts_match_the_paper():
    counts = {block.name: block.rows for block in LAYOUT.blocks}
    assert sum(counts[name] for name in ("ecapa", "pyannote", "titanet", "speakernet")) == 29
    assert counts["pyaudioanalysis"] + counts["mel"] == 190
    assert [counts[name] for name in ("language", "age", "gender", "ethnicity")] == [1, 1, 1, 1]
    assert 256 - LAYOUT.blocks[-1].stop == 33


def test_full_clip_fills_223_rows_including_both_classical_features():
    matrix, mask = assemble(full_clip())
    assert mask[:223].all() and not mask[223:].any() and not matrix[223:].any()
    for name in ("pyaudioanalysis", "mel"):
        block = LAYOUT[name]
        assert (np.abs(matrix[block.start : block.stop]).sum(1) > 0).all()


@pytest.mark.parametrize("name", LAYOUT.names)
def test_constituent_values_change_only_its_own_rows(name):
    clip, other = full_clip(), full_clip()
    rng = np.random.default_rng(9)
    other[name] = (
        {"age": np.float32(61)}.get(name, np.int32(0))
        if np.ndim(clip[name]) == 0
        else rng.normal(size=clip[name].shape).astype(np.float32)
    )
    changed = (assemble(clip)[0] != assemble(other)[0]).any(1)
    block = LAYOUT[name]
    expected = np.zeros(256, bool)
    expected[block.start : block.stop] = True
    np.testing.assert_array_equal(changed, expected)
    assert not assemble(other)[0][block.start : block.stop, block.width :].any()


@pytest.mark.parametrize("name", LAYOUT.names)
def test_missing_constituent_changes_only_its_own_rows(name):
    clip = full_clip()
    matrix, mask = assemble(clip)
    without, mask_without = assemble({key: value for key, value in clip.items() if key != name})
    block = LAYOUT[name]
    mask[block.start : block.stop] = False
    matrix[block.start : block.stop] = 0
    np.testing.assert_array_equal(mask_without, mask)
    np.testing.assert_array_equal(without, matrix)


def test_unknown_values_are_masked_row_by_row():
    clip = full_clip()
    clip["pyannote"][3] = np.nan
    clip |= {"age": np.float32(np.nan), "gender": np.int32(-1)}
    matrix, mask = assemble(clip)
    unknown_rows = [LAYOUT["pyannote"].start + 3, LAYOUT["age"].start, LAYOUT["gender"].start]
    assert not mask[unknown_rows].any() and not matrix[unknown_rows].any() and mask[:223].sum() == 220


def test_normalisation():
    clip = full_clip()
    clip["mel"][0, 0] = 1e4
    matrix, _ = assemble(clip)
    ecapa, mel = LAYOUT["ecapa"], LAYOUT["mel"]
    np.testing.assert_allclose(np.linalg.norm(matrix[ecapa.start]), np.sqrt(192), rtol=1e-5)
    np.testing.assert_allclose(matrix[mel.start + 1, :768], (clip["mel"][1] - 1) / 2, rtol=1e-5, atol=1e-6)
    assert matrix[mel.start, 0] == features.LIMIT
    np.testing.assert_allclose(matrix[LAYOUT["age"].start, 0], 0.4, rtol=1e-6)
    gender = matrix[LAYOUT["gender"].start]
    assert gender[1] == 1 and gender.sum() == 1


def test_fewer_windows_move_the_rows_below():
    shorter = Schema((Constituent("titanet", 4, 192, "embedding"),))
    layout = features.make_layout(shorter)
    assert layout["titanet"].rows == 4 and layout["speakernet"].start == LAYOUT["speakernet"].start + 3


def test_too_many_rows_are_rejected_with_the_sum():
    with pytest.raises(UserError, match=r"ecapa 1 \+ .*\+ extra 34 .*= 257"):
        features.make_layout(Schema((Constituent("extra", 34, 8, CONTINUOUS),)))


def test_unknown_input_is_rejected():
    with pytest.raises(UserError, match="unknown constituent 'mell'.*mel"):
        features.check_inputs(("mell",), LAYOUT)


def test_dropout_masks_whole_constituents_at_the_given_rates():
    mask = np.ones((4000, 256), bool)
    mask[:, LAYOUT.blocks[-1].stop :] = False
    keys = jax.random.split(jax.random.key(0), len(mask))
    rates = {"mel": 0.5, "age": 0.2, "gender": 1.0}
    kept = np.asarray(features.drop(keys, mask, LAYOUT, rates, 0.1))
    for block in LAYOUT.blocks:
        rows = kept[:, block.start : block.stop]
        assert (rows.all(1) == rows.any(1)).all()
        assert abs(rows[:, 0].mean() - (1 - rates.get(block.name, 0.0)) * 0.9) < 0.03
    assert abs((~kept.any(1)).mean() - 0.1) < 0.02
    assert np.array_equal(np.asarray(features.drop(keys, mask, LAYOUT, {}, 0.0)), mask)


def test_figure_reports_the_known_rows(dataset, tmp_path, capsys):
    out = tmp_path / "features.png"
    features.main(
        ["--data", str(dataset), "--split", "test", "--clip", make_clip(2, "test")["clip_id"], "--out", str(out)]
    )
    assert "193 of 256 rows known" in capsys.readouterr().out  # 79 + 111 + age, gender, ethnicity
    assert Image.open(out).size[0] > 800
    with pytest.raises(UserError, match="no clip 'unknown'"):
        features.main(["--data", str(dataset), "--clip", "unknown"])


def test_labels_in_a_record_reach_the_matrix(dataset):
    clips = Clips(dataset)
    layout = features.make_layout(clips.schema)
    matrix, mask = features.assemble(stack([clips[1], clips[2]]), layout, clips.statistics)
    row = layout["gender"].start
    assert np.asarray(mask[:, row]).all()
    np.testing.assert_array_equal(np.asarray(matrix[:, row, :2]).sum(1), [1, 1])
    assert not np.asarray(mask[:, layout["language"].start]).any()


def test_figure_of_a_dataset_without_statistics(eval_only_dataset, tmp_path, capsys):
    """A dataset without a training split has no statistics to normalise its features (fault 9)."""
    features.main(["--data", str(eval_only_dataset), "--out", str(tmp_path / "features.png")])
    printed = capsys.readouterr().out
    assert "193 of 256 rows known" in printed and "the clip's own mean and standard deviation" in printed
    assert Image.open(tmp_path / "features.png").size[0] > 800


def test_noise_is_added_to_embeddings_only():
    layout = LAYOUT
    keys = jax.random.split(jax.random.key(0), 200)
    noisy = np.asarray(features.add_noise(keys, jax.numpy.ones((200, 256, 768)), layout, 0.5)) - 1
    for block in layout.blocks:
        added = noisy[:, block.start : block.stop, : block.width]
        expected = 0.5 if block.kind == EMBEDDING else 0.0
        np.testing.assert_allclose(added.std(), expected, rtol=0.02)
        noisy[:, block.start : block.stop, : block.width] = 0
    assert not noisy.any()
