"""Scores, tables and the report.

INPUTS   segmentations, and the labels of the volume; for blockings affinities, to segment them anew
OUTPUTS  results/{volume}/{model}/seed{seed}/{segmentation}/scores.json
         .../{segmentation}/blockings.json    where evaluation.blockings asks for it
         results/{volume}/metrics.csv    one row per model, seed and segmentation
         results/{volume}/segmentations.csv    the same without scores, where the volume's segmentations are
         results/report.html             one self-contained page
"""


rule evaluate:
    input:
        segmentation=layout.prepared("relabel"),
        parts=parts("relabel"),
        volume=layout.output("ingest"),
    output:
        layout.output("evaluate"),
    log:
        "logs/evaluate/{volume}.{model}.seed{seed}.{segmentation}.log",
    benchmark:
        "logs/evaluate/{volume}.{model}.seed{seed}.{segmentation}.tsv"
    conda:
        environment("evaluation")
    threads: need("evaluate").threads
    resources:
        mem_mb=memory("evaluate"),
        runtime=need("evaluate").runtime,
    params:
        config=lambda w: plan.evaluate(),
    shell:
        "python -m tokenunify evaluate"
        " --config-json {params.config:q}"
        " --segmentation {input.segmentation:q}"
        " --volume {input.volume:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule blockings:
    input:
        affinities=layout.prepared("predict"),
        affinity_parts=affinity_parts,
        volume=layout.output("ingest"),
        lut=layout.output("agglomerate"),
    output:
        layout.output("blockings"),
    log:
        "logs/blockings/{volume}.{model}.seed{seed}.{segmentation}.log",
    benchmark:
        "logs/blockings/{volume}.{model}.seed{seed}.{segmentation}.tsv"
    conda:
        environment("segmentation")
    threads: need("blockings").threads
    resources:
        mem_mb=memory("blockings"),
        runtime=need("blockings").runtime,
    params:
        config=lambda w: plan.blockings(w.segmentation),
    shell:
        "python -m tokenunify blockings"
        " --config-json {params.config:q}"
        " --affinities {input.affinities:q}"
        " --volume {input.volume:q}"
        " --lut {input.lut:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule metrics:
    input:
        scores=per_run(layout.output("evaluate")),
        luts=per_run(layout.output("agglomerate")),
        predictions=per_run(layout.prepared("predict")),
        weights=weights,
    output:
        report(
            layout.output("metrics"),
            caption="../report/metrics.rst",
            category="Scores",
            labels={"volume": "{volume}"},
        ),
    log:
        "logs/metrics/{volume}.log",
    localrule: True
    conda:
        environment("evaluation")
    params:
        config=lambda w: explained(plan.metrics, w.volume),
    shell:
        "python -m tokenunify metrics"
        " --config-json {params.config:q}"
        " --scores {input.scores:q}"
        " --luts {input.luts:q}"
        " --predictions {input.predictions:q}"
        " --weights {input.weights:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule segmentations:
    input:
        manifests=segmented,
    output:
        report(
            layout.output("segmentations"),
            caption="../report/segmentations.rst",
            category="Segmentations",
            labels={"volume": "{volume}"},
        ),
    log:
        "logs/segmentations/{volume}.log",
    benchmark:
        "logs/segmentations/{volume}.tsv"
    conda:
        environment("evaluation")
    threads: need("segmentations").threads
    resources:
        mem_mb=memory("segmentations"),
        runtime=need("segmentations").runtime,
    params:
        config=lambda w: explained(plan.table_of_segmentations, w.volume),
        manifests=without_parts,
    shell:
        "python -m tokenunify segmentations"
        " --config-json {params.config:q}"
        " --manifests {params.manifests:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule report:
    input:
        metrics=expand(layout.output("metrics"), volume=plan.test_volumes),
        segmentations=expand(layout.output("segmentations"), volume=plan.applied_volumes),
        manifests=reported,
    output:
        report(layout.output("report"), caption="../report/report.rst", category="Report"),
    log:
        "logs/report/report.log",
    localrule: True
    conda:
        environment("evaluation")
    params:
        config=plan.report(),
        manifests=without_parts,
    shell:
        "python -m tokenunify report"
        " --config-json {params.config:q}"
        " --metrics {input.metrics:q}"
        " --segmentations {input.segmentations:q}"
        " --manifests {params.manifests:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"
