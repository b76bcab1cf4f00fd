"""The catalogue in config/config.yaml, and `tokenunify datasets`, which prints it."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tokenunify import cli, config
from tokenunify.config import exclusion
from tokenunify.plan import catalogue
from tokenunify.store import manifest

CATALOGUE = {
    *("wafer4", "wafer25", "wafer26", "wafer26-2", "wafer36", "wafer36-2"),
    *("ac3", "ac4", "ac4-validation"),
    *("cremi-a", "cremi-b", "cremi-c", "cremi-c-validation", "cremi-a-padded", "cremi-b-padded", "cremi-c-padded"),
    *("fafb", "mitoem-h", "mitoem-r", "fib25-whole", "kasthuri15", "kodak"),
}
SAME_ARRAY = {("ac4", "ac4-validation"), ("cremi-c", "cremi-c-validation")}
FILE = {"url": "https://example.org/a.h5", "format": "hdf5", "dataset": "main"}
REMOTE = {"url": "gs://bucket/em", "format": "precomputed"}
LOCAL = {"path": "a.npy", "format": "npy"}
ROI = {"offset": [3, 0, 0], "shape": [100, 200, 500]}


@pytest.fixture(scope="module")
def paper(root: Path) -> config.Config:
    return config.load(root / "config/config.yaml")


def volume(*sources: dict, **keys) -> config.Volume:
    return config.Volume.model_validate({"sources": sources, "voxel_size_nm": [30, 8, 8], **keys})


def test_every_entry_says_where_its_facts_are_from(paper: config.Config, root: Path):
    written = yaml.safe_load((root / "config/config.yaml").read_text())["volumes"]
    assert written.keys() == CATALOGUE
    for name, entry in written.items():
        assert {"license", "citation", "facts_from", "verified"} <= entry.keys(), name
        assert entry["citation"] and entry["facts_from"], name
        assert not any(source.phantom for source in paper.volumes[name].sources), name


def test_volumes_of_the_catalogue_are_different_arrays(paper: config.Config):
    """Else a corpus would leave out the one for the other's sake."""
    everything = exclusion.ANY_SIZE
    for pair in itertools.combinations(paper.volumes, 2):
        one, other = ({exclusion.raw_of(source) for source in paper.volumes[name].sources} for name in pair)
        shared = bool(one & other)
        assert shared == (pair in SAME_ARRAY), pair
    # Trained sections and those that choose the threshold do not overlap.
    assert exclusion.shared_raw(paper, "ac4", "ac4-validation", everything).offset == (80, 0, 0)
    assert exclusion.shared_raw(paper, "cremi-c", "cremi-c-validation", everything).offset == (100, 0, 0)


@pytest.mark.parametrize("change", [{"repo": "other/em"}, {"file": "b.h5"}, {"repo_type": "model"}])
def test_files_of_the_hub_are_told_apart_but_not_their_revisions(change: dict):
    def source(**keys) -> config.Source:
        hub = {"repo": "owner/em", "file": "a.h5", **keys}
        return config.Source.model_validate({"raw": {"huggingface": hub, "format": "hdf5", "dataset": "main"}})

    assert exclusion.raw_of(source()) != exclusion.raw_of(source(**change))
    assert exclusion.raw_of(source()) == exclusion.raw_of(source(revision="0123abc"))


def test_files_of_a_drive_and_of_an_archive_are_told_apart():
    def source(**keys) -> config.Source:
        return config.Source.model_validate({"raw": {"format": "hdf5", "dataset": "main", **keys}})

    one, other = (exclusion.raw_of(source(drive={"folder": "abc", "file": name})) for name in ("a.h5", "b.h5"))
    assert one != other
    archive = "https://example.org/a.zip"
    one, other = (exclusion.raw_of(source(url=archive, member=member)) for member in ("a.h5", "b.h5"))
    assert one != other


@pytest.mark.parametrize(
    ("entry", "gigabytes"),
    [
        (volume({"raw": LOCAL}), 0),
        (volume({"phantom": {"seed": 1, "shape": [8, 8, 8]}}), 0),
        (volume({"raw": FILE}, roi=ROI), None),
        (volume({"raw": FILE}, roi=ROI, download_gb=1.5), 1.5),
        (volume({"raw": {**FILE, "partial": True}}, roi=ROI), 0.01),
        (volume({"raw": LOCAL}, {"raw": REMOTE, "labels": REMOTE}, roi=ROI), 0.09),
        (volume({"raw": REMOTE, "labels": LOCAL}, roi=ROI), 0.01),
        (volume({"raw": REMOTE, "labels": FILE}, roi=ROI), None),
        (volume({"raw": REMOTE}), None),
    ],
)
def test_gigabytes_of_the_first_source_that_needs_a_network(entry: config.Volume, gigabytes: float | None):
    assert catalogue.download_gb(entry) == gigabytes


def test_terms_are_shown_with_whether_they_are_accepted():
    terms = {"name": "em-nc", "text": "research only"}
    asking, telling = (volume({"raw": FILE}, terms={**terms, "ask": ask}) for ask in (True, False))
    assert catalogue.licence(asking, ()) == "em-nc (not accepted)"
    assert catalogue.licence(asking, ("em-nc",)) == "em-nc (accepted)"
    assert catalogue.licence(telling, ()) == "em-nc"
    assert catalogue.licence(volume({"raw": FILE}, license="CC0"), ()) == "CC0"
    assert catalogue.licence(volume({"raw": FILE}), ()) == "?"


def test_the_table_tells_what_is_here(root: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("downloads", "wafer4"), ("downloads", "cremi-a-padded"), ("volumes", "cremi-a-padded")):
        manifest.write(tmp_path / "data" / folder / f"{name}.json", {"raw": {"shape": [200, 300, 500]}})
    assert cli.main(["datasets", "--configfile", str(root / "config/config.yaml")]) == 0
    table = capsys.readouterr().out
    assert cells(table, "wafer4")[-1] == "downloaded"
    padded = cells(table, "cremi-a-padded")
    assert (padded[1:3], padded[-1]) == (["200 x 300 x 500", "0.03"], "ingested")
    assert cells(table, "ac4")[5:] == ["ac train 0-80", "no", "-"]
    assert cells(table, "wafer25")[5] == "mec train, corpus wafers"
    kasthuri = cells(table, "kasthuri15")
    assert kasthuri[1:4] == ["1850 x 12895 x 10747", "256", "256"]
    assert kasthuri[5] == f"corpus originals (250 regions, {250 * 2**27 / 1e9:.1f} GB)"


def cells(table: str, name: str) -> list[str]:
    return next(cells for line in table.splitlines() if (cells := re.split(r" {2,}", line))[0] == name)


def test_the_readme_shows_the_table(root: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    catalogue.run([root / "config/config.yaml"])
    table = "".join(f"    {line}" for line in capsys.readouterr().out.splitlines(keepends=True))
    assert table in (root / "docs/reference/catalogue.md").read_text(), (
        "paste what `tokenunify datasets` prints in a fresh clone"
    )


def test_the_table_needs_neither_torch_nor_readers(root: Path):
    code = (
        "import sys; from pathlib import Path; from tokenunify.plan import catalogue; "
        "catalogue.run([Path('config/config.yaml')]); "
        "sys.exit(str({'torch', 'h5py', 'tensorstore', 'gdown', 'requests'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
