"""Stage report: a page that stands alone, with every section that its inputs allow, and no others."""

import base64
import csv
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tokenunify import affinities, cli
from tokenunify.config import NEAREST
from tokenunify.errors import InputError
from tokenunify.evaluation import metrics, objects, report, score_table
from tokenunify.stages import sections
from tokenunify.store import arrays, manifest

GRID = {"chunk_shape": (2, 16, 20), "shard_shape": (4, 16, 40), "block_shape": (4, 32, 40)}
SETTINGS = {"erode_labels": False, "ignore_label": 0}


def write_store(path: Path, values: np.ndarray) -> None:
    grid = {key: GRID[key] for key in ("chunk_shape", "shard_shape")}
    arrays.create(path, shape=values.shape, dtype=str(values.dtype), attributes={}, **grid)[:] = values


class Tree:
    """Results of a volume as the workflow leaves them, with segmentations that are made up."""

    def __init__(self, folder: Path, labels: np.ndarray, raw: np.ndarray, voxel_size_nm=(40.0, 8.0, 4.0), name="test"):
        self.folder, self.labels, self.name = folder, labels, name
        self.rows: list[sections.Row] = []
        self.rights = {"license": "CC-BY 4.0", "citation": "Made up <et al.> & others 2020", "terms": None}
        self.manifests: list[Path] = [self.volume(raw, voxel_size_nm)]

    def volume(self, raw: np.ndarray, voxel_size_nm) -> Path:
        path = self.folder / "data" / "volumes" / f"{self.name}.json"
        for role, values in (("raw", raw), ("labels", self.labels)):
            write_store(path.with_suffix(".zarr") / role / "0", values)
        content = {
            **{role: {"shape": raw.shape, "dtype": "uint8"} for role in ("raw", "labels")},
            **{"voxel_size_nm": voxel_size_nm, "offset_nm": (0, 0, 0), "zero": "background"},
            **{"absent": {"raw": {"absent": 1234, "total": 200_000, "unit": "chunks"}}},
            **{"config": {}, "inputs": {}},
        }
        manifest.write(path, content, {"voxels": raw.size, "seconds": 0.5})
        return path

    def write(self, path: str, content: dict, run: dict | None = None) -> Path:
        manifest.write(self.folder / path, content, run)
        self.manifests.append(self.folder / path)
        return self.folder / path

    def store(self, folder: str, stage: str, values: np.ndarray, section: dict, seconds: float) -> None:
        output = self.folder / folder / "prepared.json"
        text = sections.to_json(stage, sections.SECTIONS[stage](**GRID, **section))
        inputs = ["--inputs", str(self.manifests[0]), "--output", str(output)]
        cli.run(cli.parser().parse_args(["prepare", "--stage", stage, "--config-json", text, *inputs]))
        arrays.zarr.open_array(str(arrays.prepared_store(output)), mode="r+")[:] = values
        self.manifests.append(output)
        for part in range(2):
            run = {"voxels": self.labels.size // 2, "seconds": seconds / 2}
            self.write(f"{folder}/part{part}of2.json", {"prepared": "", "part": part, "num_parts": 2}, run)

    def predicted(self, model: str, seed: int, values: np.ndarray) -> None:
        if model == score_table.BASELINE:
            stage, section = "baseline", {"sigma_nm": 10.0}
        else:
            stage, section = "predict", {"crop": (4, 16, 16), "stride": (2, 8, 8)}
            self.trained(model, seed)
        self.store(f"results/{self.name}/{model}/seed{seed}/predict", stage, values, section, 61.0)

    def trained(self, model: str, seed: int) -> None:
        folder = f"models/{model}/seed{seed}"
        content = {
            "network": {"name": "superhuman"},
            "parameters": 1261 * (seed + 1),
            "seed": seed,
            "pretraining": "none",
        }
        content |= {"finetune": {"checkpoint": "best"}, "inputs": {"other-train": "0", "other-validation": "1"}}
        run = {"steps": 90, "best_step": 60, "best_validation_loss": 0.25, "seconds": 4000.0, "device": "cpu"}
        self.write(f"{folder}/weights.json", content, run)
        with open(self.folder / folder / "log.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "loss", "validation_loss", "learning_rate", "seconds"])
            for step in range(10, 100, 10):
                loss = (1 + seed / 10) / step
                writer.writerow([step, loss, loss * 1.2 if step % 30 == 0 else "", 0.001, step * 40.0])

    def pretrained(self, name: str, seed: int, losses: dict[str, list[float]]) -> None:
        """A pre-training whose log has the columns of `losses` in turn, each for as many rows as it has values."""
        folder = f"models/pretrain/{name}/seed{seed}"
        settings = {"objectives": [column.removeprefix("loss_") for column in losses], "mode": "alternate"}
        content = {
            "network": {"name": "superhuman"},
            "parameters": 1261,
            "seed": seed,
            "pretrain": {**settings, "ordering": {"iterations": 4, "width": 8}},
            "inputs": {"unlabelled": "0"},
        }
        self.write(f"{folder}/weights.json", content, {"steps": 60, "seconds": 75.0, "device": "cpu"})
        (self.folder / folder / "reconstructions.png").write_bytes(b"\x89PNG made up")
        columns = ["step", "epoch", "objective", "loss", "loss_random", "loss_next", "loss_next_all"]
        columns += ["variance_ratio", "learning_rate", "seconds"]
        with open(self.folder / folder / "log.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            rows = [(column, value) for column, values in losses.items() for value in values]
            for number, (column, value) in enumerate(rows):
                told = {"objective": column.removeprefix("loss_"), column: value, "loss": value}
                writer.writerow({"step": 10 * number + 10, "epoch": number, "learning_rate": 0.1, "seconds": 1, **told})

    def segmented(
        self, model: str, seed: int, name: str, segments: np.ndarray, *, method="waterz", tuned=False
    ) -> None:
        folder = f"results/{self.name}/{model}/seed{seed}/{name}"
        self.store(f"{folder}/relabel", "relabel", segments, {}, 2.5)
        scores = metrics.scores(segments, self.labels)
        table = metrics.without(metrics.contingency(segments, self.labels), 0)
        places = {(0, 0, 1): (3, 4, 5)}
        worst = {
            "splits": [asdict(e) for e in objects.located(objects.worst_splits(table, segments.shape), places)],
            "merges": [asdict(error) for error in objects.worst_merges(table, segments.shape)],
            **{"expected_run_length_nm": 1234.4, "run_length_share": 0.256},
        }
        counts = {
            "num_segments": int(np.unique(segments).size),
            "num_labels": int(np.unique(self.labels[self.labels > 0]).size),
        }
        run = {"voxels": self.labels.size, "seconds": 0.75}
        self.write(f"{folder}/scores.json", {**scores, **counts, **SETTINGS, **worst}, run)
        source = "validation" if tuned else "fixed"
        energy = {"energy": -12.3456 - seed} if method == "multicut" else {}
        self.write(f"{folder}/agglomerate.json", {"method": method, "value": 0.4, "source": source, **energy})
        if tuned:
            curve = [
                {"value": v, "voi_split": 0.2 + v, "voi_merge": 1.5 - v * v, "voi": 1, "arand": 0}
                for v in (0.2, 0.4, 0.6)
            ]
            content = {"value": 0.4, "curve": curve, "volumes": ["other-validation"]}
            self.write(f"models/{model}/seed{seed}/tune/{name}.json", content, {"voxels": 50, "seconds": 1.5})
        network = "none" if model == score_table.BASELINE else "superhuman"
        known = {"volume": self.name, "dataset": "made-up", "split": "test", "network": network, "method": method}
        start = {"pretraining": "none", "test_raw_in_pretraining": None}
        self.rows.append(sections.Row(**known, **start, model=model, seed=seed, segmentation=name))

    def metrics(self) -> Path:
        run = [f"results/{self.name}/{row.model}/seed{row.seed}" for row in self.rows]
        weights = [
            f"{path}/predict/prepared.json"
            if row.network == "none"
            else f"models/{row.model}/seed{row.seed}/weights.json"
            for path, row in zip(run, self.rows, strict=True)
        ]
        files = {
            "scores": [f"{path}/{row.segmentation}/scores.json" for path, row in zip(run, self.rows, strict=True)],
            "luts": [f"{path}/{row.segmentation}/agglomerate.json" for path, row in zip(run, self.rows, strict=True)],
            "predictions": [f"{path}/predict/prepared.json" for path in run],
            "weights": weights,
        }
        words = [word for key, paths in files.items() for word in (f"--{key}", *(str(self.folder / p) for p in paths))]
        output = self.folder / "results" / self.name / "metrics.csv"
        section = sections.to_json("metrics", sections.Metrics(rows=tuple(self.rows)))
        cli.run(cli.parser().parse_args(["metrics", "--config-json", section, *words, "--output", str(output)]))
        return output

    def report(self, metrics: list[Path], manifests: list[Path]) -> str:
        output = self.folder / "results" / "report.html"
        section = sections.to_json(
            "report", sections.Report(title=self.name, rights=[{"volumes": [self.name], **self.rights}])
        )
        words = ["--metrics", *map(str, metrics), "--manifests", *map(str, manifests), "--output", str(output)]
        cli.run(cli.parser().parse_args(["report", "--config-json", section, *words]))
        return output.read_text()


def filled(folder: Path, labels: np.ndarray, *, seeds=(0,), **options) -> Tree:
    """Two segmentations per seed, one with splits and one with merges, and a baseline that is worse."""
    random = np.random.default_rng(0)
    perfect, _ = affinities.from_labels(affinities.erode_labels(labels), NEAREST)
    grey = 60 + 150 * perfect.mean(axis=0) + random.normal(0, 12, labels.shape)
    tree = Tree(folder, labels, grey.clip(0, 255).astype(np.uint8), **options)
    half = labels * 2 + (np.indices(labels.shape)[2] > labels.shape[2] // 2)
    for seed in seeds:
        tree.predicted("small", seed, arrays.to_uint8(perfect))
        some = np.where(labels % (seed + 2) == 0, half, labels * 2)
        tree.segmented("small", seed, "waterz", np.where(labels > 0, some, 0).astype(np.uint64), tuned=True)
        merged = np.where(labels < 4 + seed, 1, labels).astype(np.uint64)
        tree.segmented("small", seed, "multicut", merged, method="multicut")
    tree.predicted(score_table.BASELINE, 0, np.stack([grey] * 3).clip(0, 255).astype(np.uint8))
    tree.segmented(score_table.BASELINE, 0, "raw-watershed-made-up", (half // 3).astype(np.uint64), tuned=True)
    return tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory, make_labels) -> Tree:
    labels = make_labels((5, 40, 60), count=9)
    labels[:, :6, :9] = 0
    return filled(tmp_path_factory.mktemp("tree"), labels, seeds=(0, 3))


class Page(HTMLParser):
    """Headings, references and whether tags are balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_has_all_sections_and_stands_alone(tree):
    text = tree.report([tree.metrics()], tree.manifests)
    page = Page(text)
    assert page.open == []
    assert page.headings == ["Neuron segmentation: test", "test", "Choice of thresholds", "Training", "Time", "Data"]
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(", re.sub(r'"data:[^"]*"', "", text))
    pictures = [base64.b64decode(r.split(",")[1]) for r in page.references if r.startswith("data:image/png")]
    assert len(pictures) == 7  # raw, labels, affinities, two segmentations, smoothed raw, baseline
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert sum(r.startswith("data:image/svg") for r in page.references) == 2
    assert "Made up <et al.> & others 2020" in page.text
    assert "1 234 of 200 000 chunks of raw are absent in the source" in page.text


@pytest.mark.parametrize("url", [None, "https://example.org/terms"])
def test_the_terms_of_the_data_are_shown(tree, url):
    tree.rights["terms"] = {"name": "nc", "text": "Not to be <sold>.", "url": url, "ask": True}
    text = Page(tree.report([tree.metrics()], tree.manifests)).text
    assert "Not to be <sold>." in text
    assert url is None or url in text


def test_the_largest_errors_of_the_best_segmentation_are_named(tree):
    contents = {path: manifest.content(path) for path in map(Path, tree.manifests) if path.stem == "scores"}
    perfect = [path for path, content in contents.items() if content["voi"] == 0]
    assert "Largest errors" not in Page(tree.report([tree.metrics()], tree.manifests)).text  # none in the best of all
    page = Page(tree.report([tree.metrics()], [path for path in tree.manifests if Path(path) not in perfect]))
    learned = [path for path in contents if path not in perfect and score_table.BASELINE not in path.parts]
    best = min(learned, key=lambda path: contents[path]["voi"])
    assert f"Largest errors of {best.parts[-4]}, {best.parts[-2]}" in page.text
    worst = contents[best]["splits"][0]
    assert f"Neuron {worst['id']} is split" in page.text
    assert [piece["contact"] for piece in worst["pieces"][:2]] == [[3, 4, 5]] * 2
    for piece in (
        piece for kind in ("splits", "merges") for error in contents[best][kind] for piece in error["pieces"]
    ):
        place = ("at ", piece["contact"]) if piece["contact"] else ("apart, from ", piece["position"])
        assert (
            f"{piece['id']}: {report.grouped(piece['voxels'])} {place[0]}({', '.join(map(str, place[1]))})" in page.text
        )
    assert "Places count in voxels of the source" in page.text
    assert "Expected run length: 1234 nm, 26 % of a perfect segmentation's" in page.text


def test_losses_that_part_are_a_warning(tmp_path, tree):
    copy = filled(tmp_path, tree.labels)
    weights = tmp_path / "models/small/seed0/weights.json"
    content, run = manifest.read(weights).values()
    manifest.write(weights, content, {**run, "losses_part_at_steps": [30, 60]})
    text = Page(copy.report([copy.metrics()], copy.manifests)).text
    assert "loss of small, seed 0, differ more than ten times at 2 validations, last at step 60 of 90." in text
    assert "Warning" not in Page(tree.report([tree.metrics()], tree.manifests)).text


def test_the_same_inputs_give_the_same_page(tree):
    table = tree.metrics()
    assert tree.report([table], tree.manifests) == tree.report([table], tree.manifests)


def test_panels_are_in_order_whatever_that_of_the_manifests(tree):
    made = [report.locate(path) for path in reversed(tree.manifests)]
    (row,) = report.pictures("test", sorted(made, key=lambda m: m.model == score_table.BASELINE), 0)
    titles = [panel["title"] for panel in row["panels"]]
    assert titles == [
        *("raw", "ground truth", "affinities y, x", "multicut", "waterz"),
        *("smoothed raw", "raw-watershed-made-up"),
    ]
    assert {panel["detail"] for panel in row["panels"][2:5]} == {"small, seed 0"}


def test_pretraining_is_shown_with_curves_and_pictures(tmp_path, tree):
    copy = filled(tmp_path, tree.labels)
    copy.pretrained("three", 0, {"loss_random": [0.3, 0.2], "loss_next": [0.4], "loss_next_all": [0.5, 0.4]})
    copy.pretrained("three", 1, {"loss_random": [0.3, 0.1], "loss_next": [0.4], "loss_next_all": [0.5, 0.4]})
    copy.pretrained("mae", 0, {"loss_random": [0.3, 0.2, 0.1]})
    rows = [{"test_raw_in_pretraining": True, "pretraining": "three"}, {}, {}]
    copy.rows = [row.model_copy(update=update) for row, update in zip(copy.rows, rows, strict=True)]
    text = copy.report([copy.metrics()], copy.manifests)
    page = Page(text)
    assert page.headings[3:5] == ["Pre-training", "Training"]
    pictures = [base64.b64decode(r.split(",")[1]) for r in page.references if r.startswith("data:image/png")]
    assert sum(picture == b"\x89PNG made up" for picture in pictures) == 3
    assert "three 0 superhuman 1 261 random, next, next_all in turn relevance 60 75.0 s cpu unlabelled" in page.text
    assert "mae 0 superhuman 1 261 random relevance" in page.text
    assert page.text.count("pre-trained on this raw, too") == 1


def test_objectives_without_a_loss_have_no_panel(tmp_path, tree):
    copy = filled(tmp_path, tree.labels)
    copy.pretrained("mae", 0, {"loss_random": [0.3, 0.2, 0.1]})
    copy.pretrained("next", 0, {"loss_next": [0.3, 0.2], "variance_ratio": [1.1]})
    curves = report.pretraining_curves([report.locate(path) for path in copy.manifests]).decode()
    drawn = re.findall(r"<!-- ([a-z- /]+) -->", curves)
    assert {"random", "next", "variance of targets", "mae"} <= set(drawn)
    assert "next-all" not in drawn
    assert report.pretraining_curves([]) is None


def test_places_of_pretrainings_and_models_are_told_apart(tmp_path):
    made = report.locate(tmp_path / "models/pretrain/mae/seed3/weights.json")
    assert (made.stage, made.model, made.seed) == ("pretrain", "mae", 3)
    made = report.locate(tmp_path / "models/mae/seed3/weights.json")
    assert (made.stage, made.model, made.seed) == ("finetune", "mae", 3)


def test_sections_without_inputs_are_left_out(tree):
    page = Page(tree.report([tree.metrics()], []))
    assert page.headings == ["Neuron segmentation: test", "test"]
    assert page.references == []


def test_a_damaged_store_costs_its_picture_only(tree, tmp_path, caplog):
    copy = filled(tmp_path, tree.labels)
    next(path for path in (tmp_path / "results/test/small/seed0/multicut/relabel").rglob("0/c/0/*/*")).unlink()
    page = Page(copy.report([copy.metrics()], copy.manifests))
    assert sum(r.startswith("data:image/png") for r in page.references) == 6
    assert "lacks 1 of its shard files" in caplog.text


def test_means_and_spreads_over_seeds_and_the_best_are_shown(tree):
    rows = score_table.read(tree.metrics())
    summary = score_table.summary(rows)
    assert [(g.model, g.segmentation, g.seeds) for g in summary.groups] == [
        ("small", "waterz", 2),
        ("small", "multicut", 2),
        ("raw-watershed", "raw-watershed-made-up", 1),
    ]
    chosen = rows[rows.segmentation == "multicut"]
    assert summary.groups[1].mean["voi"] == pytest.approx(chosen.voi.mean())
    assert summary.groups[1].spread["voi"] == pytest.approx(np.std(chosen.voi, ddof=1))
    best = min(summary.groups, key=lambda group: group.mean["arand"])
    assert ["arand" in group.best for group in summary.groups] == [group is best for group in summary.groups]
    text = tree.report([tree.metrics()], tree.manifests)
    assert f"{chosen.voi.mean():.3f} <small>± {np.std(chosen.voi, ddof=1):.3f}</small>" in text
    assert "β 0.4" in text
    assert summary.headline in Page(text).text


def test_the_energy_stands_beside_a_multicut(tree):
    page = Page(tree.report([tree.metrics()], tree.manifests))
    assert page.text.count("β 0.4, fixed; energy \N{MINUS SIGN}13.85") == 1  # mean of seeds 0 and 3
    assert page.text.count("; energy") == 1


def test_blockings_are_shown_where_they_were_compared(tmp_path, tree):
    copy = filled(tmp_path, tree.labels)
    pair = {"blocks": [[4, 32, 40], [8, 16, 40]], "voi_split": 0.1234, "voi_merge": 0.2, "voi": 0.3234, "arand": 0.0456}
    run = {"seconds": 30.0, "voxels": 2 * tree.labels.size}
    copy.write("results/test/small/seed0/waterz/blockings.json", {"value": 0.4, "pairs": [pair]}, run)
    page = Page(copy.report([copy.metrics()], copy.manifests))
    row = r"small, seed 0 waterz 4 . 32 . 40 8 . 16 . 40 0\.123 0\.200 0\.323 0\.046"
    assert re.search(rf"Fragments in other blocks Model .* VOI ARAND {row} The volume", page.text)
    assert "evaluate blockings test small" in page.text  # a column of the times
    without = Page(tree.report([tree.metrics()], tree.manifests)).text
    assert "Fragments in other blocks" not in without
    assert "blockings" not in without


def test_the_first_part_stands_for_all(tree):
    few = [path for path in tree.manifests if not path.name.startswith("part1of")]
    assert len(few) < len(tree.manifests)
    table = tree.metrics()
    assert tree.report([table], few) == tree.report([table], tree.manifests)


def test_times_add_up_over_parts_seeds_and_segmentations(tree):
    made = [report.locate(path) for path in tree.manifests]
    by_row = {(row["volume"], row["model"]): row for row in report.times(made)}
    small, baseline = by_row["test", "small"], by_row["test", score_table.BASELINE]
    assert small["stages"]["affinities"] == {"seconds": 122.0, "voxels": 2 * tree.labels.size}
    assert small["stages"]["relabel"] == {"seconds": 10.0, "voxels": 4 * tree.labels.size}
    assert baseline["stages"]["evaluate"] == {"seconds": 0.75, "voxels": tree.labels.size}
    assert "rag" not in small["stages"]
    tunings = sum(place.stage == "tune" and place.model == "small" for place in made)
    tuned = by_row["other-validation", "small"]["stages"]
    assert tuned == {"tune": {"seconds": 1.5 * tunings, "voxels": 50 * tunings}}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99.9, "99.9 s"), (100, "1 min 40 s"), (7199, "119 min 59 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(604, "604 voxel/s"), (12_345, "12.3 kvoxel/s"), (123_456, "123 kvoxel/s"), (1.3e6, "1.30 Mvoxel/s")],
)
def test_rates(rate, text):
    assert report.rate(rate) == text


def test_bad_inputs_are_named(tree, tmp_path):
    with pytest.raises(InputError, match=r"at least one metrics\.csv"):
        tree.report([], tree.manifests)
    with pytest.raises(InputError, match=r"odd\.json is not the manifest of a stage"):
        tree.report([tree.metrics()], [tmp_path / "odd.json"])
    table = tmp_path / "metrics.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"metrics\.csv has the columns \['a', 'b'\], expected"):
        tree.report([table], [])
    with pytest.raises(InputError, match="cannot be read"):
        tree.report([tmp_path / "none.csv"], [])
