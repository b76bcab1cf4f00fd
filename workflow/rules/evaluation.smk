"""Scores, tables and the report.

INPUTS   segmentations, and the labels of the volume; for blockings affinities, to segment them anew
OUTPUTS  results/{volume}/{model}/seed{seed}/{segmentation}/scores.json
         .../{segmentation}/blockings.json    where evaluation.blockings asks for it
         results/{volume}/metrics.csv    one row per model, seed and segmentation
         results/report.html             one self-contained page
"""


rule evaluate:
    input:
        segmentation=f"{RELABEL}/prepared.json",
        parts=parts("relabel", RELABEL),
        volume="data/volumes/{volume}.json",
    output:
        f"{RUN}/{{segmentation}}/scores.json",
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
        " &> {log:q}"


rule blockings:
    input:
        affinities=f"{PREDICT}/prepared.json",
        affinity_parts=affinity_parts,
        volume="data/volumes/{volume}.json",
        lut=f"{RUN}/{{segmentation}}/agglomerate.json",
    output:
        f"{RUN}/{{segmentation}}/blockings.json",
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
        " &> {log:q}"


rule metrics:
    input:
        scores=per_run(f"{RUN}/{{segmentation}}/scores.json"),
        luts=per_run(f"{RUN}/{{segmentation}}/agglomerate.json"),
        predictions=per_run(f"{PREDICT}/prepared.json"),
        weights=weights,
    output:
        report(
            "results/{volume}/metrics.csv",
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
        " &> {log:q}"


rule report:
    input:
        metrics=expand("results/{volume}/metrics.csv", volume=plan.test_volumes),
        manifests=reported,
    output:
        report("results/report.html", caption="../report/report.rst", category="Report"),
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
        " --manifests {params.manifests:q}"
        " --output {output:q}"
        " &> {log:q}"
