"""Block-wise prediction equals a slow whole-volume loop, for any blocks and parts, killed or not."""

import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.geometry import Blocks
from tokenunify.learning import checkpoint, networks, predict, waiting_crops
from tokenunify.learning.tiling import Tiling, blending_weight
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest, prepare

SHAPE = (7, 37, 45)
FLIPS = list(product((False, True), repeat=3))
GRID = {"chunk_shape": (4, 8, 8), "shard_shape": (4, 8, 16)}
BLOCKS = [(8, 40, 48), (4, 16, 16), (8, 8, 48), (4, 24, 32)]


@pytest.fixture
def workplace(tmp_path):
    """A volume and a network of random weights with five output channels: data/v.json, models/weights.json."""
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    arrays.create(tmp_path / "data/v.zarr/raw/0", shape=SHAPE, dtype="uint8", **GRID, attributes={})[:] = raw
    content = {"raw": {"shape": SHAPE, "dtype": "uint8"}, "labels": None, "zero": "background"}
    manifest.write(tmp_path / "data/v.json", {**content, "voxel_size_nm": [40, 8, 8], "offset_nm": [0, 0, 0]})
    write_weights(tmp_path / "models/weights.json", c.Superhuman(filters=(3, 4), normalisation="instance"))
    return tmp_path


def write_weights(path, description, change=lambda network: None):
    torch.manual_seed(1)
    description = description.model_dump(mode="json")
    offsets = [*c.NEAREST, (0, -3, 0), (0, 0, -3)]
    network = networks.build(description, offsets)
    change(network)
    checkpoint.save_weights(path.with_name("weights.safetensors"), network.state_dict())
    weights = manifest.file_sha256(path.with_name("weights.safetensors"))
    manifest.write(path, {"weights": weights, "network": description, "finetune": {"offsets": offsets}})


def section(**given):
    usual = {"crop": (4, 16, 20), "stride": (3, 9, 11), "padding": (1, 3, 4), "block_shape": BLOCKS[0]}
    return sections.Predict(**{**usual, **GRID, **given})


def run(place, settings, parts=1, folder="results", pool=None):
    """Prepare and predict all parts, one after the other or in the pool; the affinities and the parts' manifests."""
    text = sections.to_json("predict", settings)
    parsed, plain = sections.from_json("predict", text)
    raw, weights, prepared = place / "data/v.json", place / "models/weights.json", place / folder / "prepared.json"
    prepare.run("predict", text, [raw, weights], prepared)
    given = {"raw": raw, "weights": weights, "prepared": prepared, "threads": 1, "device": "cpu"}
    outputs = {(i, parts): place / folder / f"part{i}of{parts}.json" for i in range(parts)}
    if pool is None:
        for part, output in outputs.items():
            predict.run(parsed, plain, **given, output=output, part=part)
    else:
        jobs = [pool.submit(predict.run, parsed, plain, **given, output=o, part=p) for p, o in outputs.items()]
        assert [job.result() for job in jobs] == [None] * parts
    return arrays.open_prepared(prepared)[:], [manifest.read(output) for output in outputs.values()]


def reference(place, settings, lost=(0, 0, 0)):
    """Every crop of the mirrored whole volume, in raster order, one by one; outputs lack `lost` of its voxels."""
    before = [40 + n // 2 for n in lost]
    padding = [(b, b) for b in before]
    raw = np.pad(arrays.open_volume(place / "data/v.json").raw[:], padding, mode="reflect").astype(np.float32) / 255
    network, _ = checkpoint.rebuild(place / "models/weights.json")
    output = tuple(n - k for n, k in zip(settings.crop, lost, strict=True))
    weight = blending_weight(output, settings.sigma)
    sums, total = np.zeros((3, *raw.shape), np.float32), np.zeros(raw.shape, np.float32)
    tiling = Tiling(SHAPE, output, settings.stride, settings.padding)
    for number in range(len(tiling)):
        first = [s + b for s, b in zip(tiling.start(number), before, strict=True)]
        box = tuple(slice(f, f + n) for f, n in zip(first, output, strict=True))
        around = tuple(slice(f - k // 2, f - k // 2 + n) for f, k, n in zip(first, lost, settings.crop, strict=True))
        with torch.no_grad():
            affinities = network(torch.from_numpy(raw[around])[None, None])[0, :3].numpy()
        sums[(slice(None), *box)] += weight * affinities
        total[box] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, SHAPE, strict=True))
    return sums[(slice(None), *inside)] / total[inside]


def test_any_blocks_parts_and_workers_give_the_whole_volumes_bytes(workplace):
    coarse = {"stride": (3, 13, 16)}
    with ProcessPoolExecutor(2, get_context("spawn")) as two:
        results = [
            run(workplace, section(block_shape=block, **coarse), parts, f"results/{number}", pool)[0]
            for number, (block, parts, pool) in enumerate(product(BLOCKS, (1, 2, 5), (None, two)))
        ]
    assert results[0].shape == (3, *SHAPE) and results[0].dtype == np.uint8
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    exact = reference(workplace, section(**coarse)) * 255
    assert np.abs(results[0] - exact).max() <= 0.501
    assert results[0].std() > 5


def test_valid_convolutions_predict_every_voxel(workplace):
    """Outputs, not crops, are laid over the volume; each reads the raw around it, mirrored beyond the faces."""

    def spread(network):  # of themselves the affinities of random weights are all but equal
        with torch.no_grad():
            std, mean = torch.std_mean(network.logits(torch.rand(1, 1, 30, 214, 241)), (0, 2, 3, 4))
            network.conv18.weight /= std[:, None, None, None, None]
            network.conv18.bias.sub_(mean).div_(std)

    write_weights(workplace / "models/weights.json", c.Mala(filters=(2, 2, 2, 2)), spread)
    settings = section(crop=(32, 241, 241), stride=(3, 19, 23), padding=(0, 1, 2), block_shape=(4, 16, 16))
    result, (part,) = run(workplace, settings)
    assert part["run"]["crops_computed"] == 2 * 2 * 2
    assert np.abs(result - reference(workplace, settings, lost=(28, 212, 212)) * 255).max() <= 0.501
    assert result.std() > 5


PLANES = {"chunk_shape": (2, 8, 8), "shard_shape": (2, 8, 16), "block_shape": (2, 16, 32)}
"""Four planes of three by two blocks; a crop touches up to three of the planes."""


@pytest.mark.parametrize("parts", [1, 3])
def test_a_part_computes_each_of_its_crops_once(workplace, parts):
    settings = section(**PLANES)
    _, manifests = run(workplace, settings, parts)
    blocks, tiling = Blocks(SHAPE, settings.block_shape), Tiling(SHAPE, settings.crop, settings.stride, (1, 3, 4))
    for part, written in enumerate(manifests):
        touching = {n for index in blocks.part(part, parts) for n in tiling.touching(blocks.roi(index))}
        assert written["run"]["crops_computed"] == written["run"]["crops_unique"] == len(touching)
        assert 0 < written["run"]["forward_seconds"] < written["run"]["seconds"] * 1.1
    assert list((workplace / "results").glob("*/crops-*")) == []


def test_crops_that_a_killed_part_left_are_neither_read_nor_kept(workplace):
    settings = section(**PLANES)
    expected, _ = run(workplace, settings, folder="whole")
    prepare.run(
        "predict",
        sections.to_json("predict", settings),
        [workplace / "data/v.json", workplace / "models/weights.json"],
        workplace / "results/prepared.json",
    )
    store = arrays.prepared_store(workplace / "results/prepared.json").parent
    overlapping, other = store / "crops-0-24-abc", store / "crops-24-30-def"
    for folder in (overlapping, other):
        folder.mkdir()
        for number in range(48):
            np.save(folder / f"{number}.npy", np.full((3, 4, 16, 20), 7, np.float32))
    result, _ = run(workplace, settings)
    np.testing.assert_array_equal(result, expected)
    assert list(store.glob("crops-*")) == [other]


def test_an_interrupted_part_removes_its_crops(workplace, monkeypatch):
    blend, left = predict.Crops.blend, []

    def failing(*arguments):
        blend(*arguments)
        left.extend((workplace / "results").glob("*/crops-*/*.npy"))
        raise OSError("disk full")

    monkeypatch.setattr(waiting_crops, "MOST_BYTES", 0)
    monkeypatch.setattr(predict.Crops, "blend", failing)
    with pytest.raises(OSError, match="disk full"):
        run(workplace, section(**PLANES))
    assert left and not any(path.parent.exists() for path in left)


def test_killed_prediction_goes_on_at_the_next_block(workplace, monkeypatch):
    settings = section(block_shape=(4, 16, 16))
    expected, _ = run(workplace, settings, folder="whole")
    blend, calls = predict.Crops.blend, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return blend(*arguments)

    monkeypatch.setattr(predict.Crops, "blend", dying)
    with pytest.raises(KeyboardInterrupt):
        run(workplace, settings)
    result, (part,) = run(workplace, settings)
    assert part["run"]["blocks"] == 18 and part["run"]["blocks_computed_now"] == 18 - 7
    np.testing.assert_array_equal(result, expected)


def undo(place, settings, blocks):
    """Make blocks zero, and take them out of the ledger, as if they had never been finished."""
    affinities = arrays.open_writable(place / "results/prepared.json")
    for block in blocks:
        affinities[(..., *Blocks(SHAPE, settings.block_shape).roi(block).slices)] = 0
    for path in place.glob("results/*/ledger/*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["block"] not in blocks))


@pytest.mark.parametrize("lost", [{0}, {7, 19}, {0, 12, 18}, {3, 4, 10, 15, 16, 23}, set(range(5, 24))])
def test_blocks_that_are_done_again_come_out_the_same(workplace, lost):
    settings = section(**PLANES)
    expected, _ = run(workplace, settings)
    undo(workplace, settings, lost)
    result, (part,) = run(workplace, settings)
    assert part["run"]["blocks_computed_now"] == len(lost)
    assert part["run"]["crops_computed"] == part["run"]["crops_unique"]
    np.testing.assert_array_equal(result, expected)


def all_saved(monkeypatch):
    """Bytes of every array that np.save writes from now on."""
    save, sizes = np.save, []
    monkeypatch.setattr(np, "save", lambda path, array: (sizes.append(array.nbytes), save(path, array)))
    return sizes


@pytest.mark.parametrize("grid", [PLANES, {"block_shape": (4, 16, 16)}, {"block_shape": (8, 8, 48)}])
def test_however_much_waits_in_files_the_bytes_are_the_same(workplace, monkeypatch, grid):
    settings, saved = section(**grid), all_saved(monkeypatch)
    expected, _ = run(workplace, settings, folder="held")
    assert saved == []
    monkeypatch.setattr(waiting_crops, "MOST_BYTES", 40_000)
    some, _ = run(workplace, settings, folder="some")
    num_bytes = sum(saved)
    monkeypatch.setattr(waiting_crops, "MOST_BYTES", 0)
    none, _ = run(workplace, settings, folder="none")
    assert 0 < num_bytes < sum(saved) - num_bytes
    np.testing.assert_array_equal(some, expected)
    np.testing.assert_array_equal(none, expected)


def test_a_volume_smaller_than_the_crop_is_mirrored(workplace):
    settings = section(crop=(20, 16, 48), stride=(10, 9, 20), padding=(4, 3, 1))
    result, _ = run(workplace, settings)
    assert np.abs(result - reference(workplace, settings) * 255).max() <= 0.501


def test_flips_average_the_same_pairs_of_voxels():
    """A network that knows only the difference of the pair must be its own flipped average."""

    def forward(raw):
        axes = [(raw - raw.roll(1, axis)).abs() for axis in (2, 3, 4)]
        return torch.cat(axes, dim=1)

    raw = torch.rand(2, 1, 4, 5, 6)
    averaged, plain = predict.average_flips(forward, raw, c.NEAREST), forward(raw)
    for channel in range(3):
        inner = [slice(None)] * 3
        inner[channel] = slice(1, None)
        torch.testing.assert_close(averaged[(slice(None), channel, *inner)], plain[(slice(None), channel, *inner)])


def flips_by_loops(forward, raw, offsets):
    """Mean over the flips in which a channel's pair of voxels is seen, as the pair of whichever of the two."""
    shape, size = raw.shape[2:], np.array(raw.shape[2:])
    predictions = {flipped: forward(raw.flip([2 + a for a in range(3) if flipped[a]])) for flipped in FLIPS}
    mean = np.zeros((len(raw), len(offsets), *shape))
    for channel, offset in enumerate(offsets):
        for v in np.ndindex(*shape):
            seen = []
            for flipped, prediction in predictions.items():
                here, there = (np.where(flipped, size - 1 - p, p) for p in (np.array(v), np.add(v, offset)))
                if (there - here == offset).all():
                    seen.append(prediction[(slice(None), channel, *here)])
                elif (here - there == offset).all() and (there >= 0).all() and (there < size).all():
                    seen.append(prediction[(slice(None), channel, *there)])
            mean[(slice(None), channel, *v)] = np.mean([values.numpy() for values in seen], axis=0)
    return mean


def test_flips_of_long_range_offsets_equal_a_loop_over_pairs():
    offsets = [*c.NEAREST, (-2, 0, 0), (0, 3, 0), (0, 0, -9), (0, -2, -3), (0, 2, -1), (1, -2, 2), (0, 0, 1)]
    weights = torch.rand(len(offsets), 1, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    raw = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(2))

    def forward(raw):
        return torch.nn.functional.conv3d(raw, weights, padding=1)

    found = predict.average_flips(forward, raw, offsets)
    np.testing.assert_allclose(found.numpy(), flips_by_loops(forward, raw, offsets), rtol=1e-5)


def test_all_channels_are_stored_where_they_are_asked_for_and_the_first_stay_the_same(workplace):
    offsets = (*c.NEAREST, (0, -3, 0), (0, 0, -3))
    for flips in (False, True):
        nearest, _ = run(workplace, section(flips=flips), folder=f"nearest{flips}")
        found, _ = run(workplace, section(flips=flips, offsets=offsets), folder=f"all{flips}")
        assert (nearest.shape, found.shape) == ((3, *SHAPE), (5, *SHAPE))
        np.testing.assert_array_equal(found[:3], nearest)
        attributes = arrays.open_prepared(workplace / f"all{flips}/prepared.json").attrs
        assert attributes["offsets"] == [list(offset) for offset in offsets]
        assert "offsets" not in arrays.open_prepared(workplace / f"nearest{flips}/prepared.json").attrs
    assert "offsets" not in json.loads(sections.to_json("predict", section()))


def test_weights_of_other_offsets_are_refused(workplace):
    with pytest.raises(
        InputError, match=r"weights\.json: .*offsets that begin with .*\[0, -4, 0\].*, got .*\[0, -3, 0\]"
    ):
        run(workplace, section(offsets=(*c.NEAREST, (0, -4, 0))))


def test_flips_average_eight_predictions(workplace):
    plain, _ = run(workplace, section(), folder="plain")
    flipped, (part,) = run(workplace, section(flips=True), folder="flipped")
    assert (plain != flipped).any()
    assert plain.astype(float).std() > flipped.astype(float).std()
    assert part["run"]["crops_computed"] == part["run"]["crops_unique"]


def test_batches_do_not_change_a_crops_result(workplace):
    network, _ = checkpoint.rebuild(workplace / "models/weights.json")
    single = predict.CropPredictor(network, section(), torch.device("cpu"), threads=1)
    batched = predict.CropPredictor(network, section(), torch.device("cpu"), threads=1)
    batched.batch_size = 3
    crops = np.random.default_rng(0).random((4, 4, 16, 20), np.float32)
    together = np.concatenate([batched(crops[:3]), batched(crops[3:])])
    alone = np.concatenate([single(crops[n : n + 1]) for n in range(4)])
    assert together.shape == (4, 3, 4, 16, 20)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_low_precision_stays_close(workplace):
    exact, _ = run(workplace, section(), folder="exact")
    mixed, _ = run(workplace, section(precision="bf16-mixed"), folder="mixed")
    assert 0 < np.abs(exact.astype(int) - mixed).max() < 40


def test_affinities_that_overflow_are_never_stored(workplace):
    def enlarge(network):
        next(network.parameters()).data *= 1e9

    description = c.Superhuman(filters=(3, 4), normalisation="instance")
    write_weights(workplace / "models/weights.json", description, enlarge)
    with pytest.raises(InputError, match=r"not finite in precision 16-mixed: set predict\.precision"):
        run(workplace, section(precision="16-mixed"))


def test_crop_that_does_not_suit_the_network_is_explained(workplace):
    with pytest.raises(InputError, match=r"multiple of .1, 2, 2..*; change.*predict.crop"):
        run(workplace, section(crop=(4, 15, 20)))


def test_missing_gpu_is_explained():
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible here")
    with pytest.raises(InputError, match="no GPU is visible"):
        predict.choose_device("cuda")
