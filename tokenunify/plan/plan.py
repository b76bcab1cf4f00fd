"""What the rules ask of the configuration: each job's --config-json."""

from tokenunify import config as c
from tokenunify import layout
from tokenunify.config import exclusion
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.plan import downloaded, report_rows
from tokenunify.plan.runs import Runs
from tokenunify.stages import sections


class Plan(Runs):
    """The configuration seen from the rules: a method for each stage, named as the stage."""

    def download(self, volume: str) -> str:
        """The section with which the volume's download was made, if that still answers the configuration."""
        v, region = self.volume(volume), self.sampled.get(volume)
        box = {"voxel_size_nm": v.voxel_size_nm, "roi": v.roi} if v.has_boxes else {}
        sample = region and sections.Sample(shape=region.shape, places=region.places, max_blank=region.max_blank)
        rights = {"terms": v.terms, "license": v.license, "citation": v.citation}
        section = sections.Download(sources=v.sources, **rights, **box, sample=sample)
        return downloaded.still_asked(layout.output("download").format(volume=volume), section)

    @property
    def download_permit(self) -> str:
        """Limits and accepted licences of downloads as JSON; they decide no result."""
        limits = self.config.download.model_dump(mode="json")
        return sections.Permit(**limits, accept_licenses=self.config.accept_licenses).model_dump_json()

    def download_weights(self, model: str) -> str:
        source, output = self.model(model).weights, layout.output("download_weights").format(model=model)
        if source is None:
            raise InputError(f"{output}: models.{model} has no published weights; add models.{model}.weights")
        return downloaded.still_asked(output, sections.Download(sources=(source,)))

    def ingest(self, volume: str) -> str:
        v, storage = self.volume(volume), self.config.storage
        section = sections.Ingest(
            voxel_size_nm=v.voxel_size_nm,
            roi=v.roi,
            zero=v.zero,
            chunk_shape=storage.chunk_shape,
            shard_shape=v.shard_shape or storage.shard_shape,
            intensity=v.intensity,
            label_ids=v.label_ids,
            stated_voxel_size=v.stated_voxel_size,
        )
        return sections.to_json("ingest", section)

    def pretrain(self, pretraining: str) -> str:
        p, corpus = self.pretraining(pretraining), self.corpus(pretraining)
        datasets = []
        for members in corpus.datasets.values():
            regions = []
            for member in members:
                if member.sample:
                    regions += [sections.Region(volume=name, box=None, avoid=()) for name in member.names]
                    continue
                avoided = exclusion.avoided(self.config, corpus, member.volume)
                avoid = tuple(c.RoiConfig(offset=box.offset, shape=box.shape) for box in avoided)
                boxes = member.regions or (None,)
                regions += [sections.Region(volume=member.volume, box=box, avoid=avoid) for box in boxes]
            datasets.append(tuple(regions))
        given = {key: value for key, value in p if key != "corpus"}
        return sections.to_json("pretrain", sections.Pretrain(**given, datasets=tuple(datasets)))

    def finetune(self, model: str) -> str:
        m = self.model(model)
        section = sections.Finetune(
            **dict(m.finetune),
            **{key: getattr(m, key) for key in ("network", "start", "transfer", "train")},
            sections=tuple(t.sections for t in self.dataset(model).train),
            lora=m.lora if m.train == "lora" else None,
        )
        return sections.to_json("finetune", section)

    def predict(self, model: str) -> str:
        m = self.model(model)
        crop = m.predict.crop or m.finetune.crop
        stride = m.predict.stride or tuple(max(1, n // 2) for n in m.network.output_extent(crop))
        given = {**dict(m.predict), "crop": crop, "stride": stride}
        offsets = m.finetune.offsets if any(map(_is_lifted, self.config.segmentations.values())) else c.NEAREST
        return sections.to_json("predict", sections.Predict(**given, offsets=offsets, **self._grid()))

    def baseline(self) -> str:
        assert self.config.evaluation.baseline is not None
        section = sections.Baseline(sigma_nm=self.config.evaluation.baseline.sigma_nm, **self._grid())
        return sections.to_json("baseline", section)

    def fragments(self, name: str) -> str:
        segmentation = next(s for s in self.segmentations if self.fragments_name(s) == name)
        settings = self.segmentations[segmentation].fragments
        grid = self._grid()
        grid["block_shape"] = settings.block_shape or grid["block_shape"]
        return sections.to_json("fragments", sections.Fragments(**{**dict(settings), **grid}))

    def rag(self, fragments: str) -> str:
        users = [s for name, s in self.segmentations.items() if self.fragments_name(name) == fragments]
        section = sections.Rag(
            block_shape=self.config.storage.block_shape,
            histograms=any(isinstance(s, c.Waterz) and s.score.startswith("hist") for s in users),
            lifted=any(map(_is_lifted, users)),
        )
        return sections.to_json("rag", section)

    def tune(self, segmentation: str) -> str:
        evaluation = self.config.evaluation
        section = sections.Tune(
            segmentation=self._without_fragments(segmentation),
            erode_labels=evaluation.erode_labels,
            ignore_label=evaluation.ignore_label,
        )
        return sections.to_json("tune", section)

    def agglomerate(self, segmentation: str) -> str:
        return sections.to_json("agglomerate", sections.Agglomerate(segmentation=self._without_fragments(segmentation)))

    def relabel(self) -> str:
        return sections.to_json("relabel", sections.Relabel(**self._grid()))

    def evaluate(self) -> str:
        evaluation = self.config.evaluation
        section = sections.Evaluate(
            block_shape=self.config.storage.block_shape,
            erode_labels=evaluation.erode_labels,
            ignore_label=evaluation.ignore_label,
            skeleton_spacing_nm=evaluation.skeleton_spacing_nm,
        )
        return sections.to_json("evaluate", section)

    def blockings(self, segmentation: str) -> str:
        settings, shapes = self.segmentations[segmentation], self.config.evaluation.blockings
        section = sections.Blockings(segmentation=settings, block_shapes=shapes, **self._grid())
        return sections.to_json("blockings", section)

    def metrics(self, volume: str) -> str:
        rows = tuple(report_rows.row(self, run) for run in self.runs(volume))
        return sections.to_json("metrics", sections.Metrics(rows=rows))

    def table_of_segmentations(self, volume: str) -> str:
        """The section of the stage segmentations."""
        rows = tuple(report_rows.segmentation(self, run) for run in self.segmented(volume))
        return sections.to_json("segmentations", sections.Segmentations(rows=rows))

    def report(self) -> str:
        runs = [run for volume in self.test_volumes for run in self.runs(volume)]
        section = sections.Report(title=", ".join(self.test_volumes), rights=report_rows.rights(self, runs))
        return sections.to_json("report", section)

    def _grid(self) -> dict[str, Coordinate]:
        storage = self.config.storage
        return {key: getattr(storage, key) for key in ("chunk_shape", "shard_shape", "block_shape")}

    def _without_fragments(self, segmentation: str) -> c.Waterz | c.Multicut:
        settings = self.segmentations[segmentation]
        return settings.model_copy(update={"fragments": c.Fragments()})


def _is_lifted(segmentation: c.Waterz | c.Multicut) -> bool:
    return isinstance(segmentation, c.Multicut) and segmentation.lifted
