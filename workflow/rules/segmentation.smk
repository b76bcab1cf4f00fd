"""From affinities to a segmentation; the raw-watershed baseline takes the same way with smoothed raw for affinities.

INPUTS   results/{volume}/{model}/seed{seed}/predict/, and the volume's mask, if it has one
OUTPUTS  .../fragments/{fragments}/   watershed, one per distinct setting
         .../rag/{fragments}/         edges and their statistics
         models/{model}/seed{seed}/tune/{segmentation}.json   threshold or beta chosen on the validation volumes
         .../{segmentation}/agglomerate.json and lut.npy      fragment -> segment
         .../{segmentation}/relabel/                          the segmentation
"""


# `use rule` takes over everything but `localrule`.
localrules:
    prepare_baseline,
    prepare_fragments,
    prepare_relabel,


use rule prepare_predict as prepare_baseline with:
    input:
        layout.output("ingest"),
    output:
        layout.prepared("baseline"),
    log:
        f"logs/prepare/{{volume}}.{BASELINE}.seed0.predict.log",
    wildcard_constraints:
        volume="[^/]+",
    params:
        stage="baseline",
        config=lambda w: plan.baseline(),


rule baseline:
    input:
        raw=layout.output("ingest"),
        prepared=rules.prepare_baseline.output,
    output:
        layout.part("baseline"),
    log:
        "logs/baseline/{volume}.part{part}of{parts}.log",
    benchmark:
        "logs/baseline/{volume}.part{part}of{parts}.tsv"
    conda:
        environment("segmentation")
    threads: need("baseline").threads
    resources:
        mem_mb=memory("baseline"),
        runtime=need("baseline").runtime,
    params:
        config=lambda w: plan.baseline(),
    shell:
        "python -m tokenunify baseline"
        " --config-json {params.config:q}"
        " --raw {input.raw:q}"
        " --prepared {input.prepared:q}"
        " --part {wildcards.part}/{wildcards.parts}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


use rule prepare_predict as prepare_fragments with:
    input:
        affinities=layout.prepared("predict"),
        volume=layout.output("ingest"),
    output:
        layout.prepared("fragments"),
    log:
        "logs/prepare/{volume}.{model}.seed{seed}.{fragments}.log",
    wildcard_constraints:
        model="[^/]+",
    params:
        stage="fragments",
        config=lambda w: plan.fragments(w.fragments),


rule fragments:
    input:
        affinities=layout.prepared("predict"),
        parts=affinity_parts,
        volume=layout.output("ingest"),
        prepared=rules.prepare_fragments.output,
    output:
        layout.part("fragments"),
    log:
        "logs/fragments/{volume}.{model}.seed{seed}.{fragments}.part{part}of{parts}.log",
    benchmark:
        "logs/fragments/{volume}.{model}.seed{seed}.{fragments}.part{part}of{parts}.tsv"
    conda:
        environment("segmentation")
    threads: need("fragments").threads
    resources:
        mem_mb=memory("fragments"),
        runtime=need("fragments").runtime,
    params:
        config=lambda w: plan.fragments(w.fragments),
    shell:
        "python -m tokenunify fragments"
        " --config-json {params.config:q}"
        " --affinities {input.affinities:q}"
        " --volume {input.volume:q}"
        " --prepared {input.prepared:q}"
        " --part {wildcards.part}/{wildcards.parts}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule rag:
    input:
        affinities=layout.prepared("predict"),
        affinity_parts=affinity_parts,
        fragments=layout.prepared("fragments"),
        fragment_parts=parts("fragments"),
    output:
        layout.part("rag"),
    log:
        "logs/rag/{volume}.{model}.seed{seed}.{fragments}.part{part}of{parts}.log",
    benchmark:
        "logs/rag/{volume}.{model}.seed{seed}.{fragments}.part{part}of{parts}.tsv"
    conda:
        environment("segmentation")
    threads: need("rag").threads
    resources:
        mem_mb=memory("rag"),
        runtime=need("rag").runtime,
    params:
        config=lambda w: plan.rag(w.fragments),
    shell:
        "python -m tokenunify rag"
        " --config-json {params.config:q}"
        " --affinities {input.affinities:q}"
        " --fragments {input.fragments:q}"
        " --part {wildcards.part}/{wildcards.parts}"
        " --threads {threads}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule tune:
    input:
        rags=on_validation(parts("rag")[:1]),
        rag_parts=on_validation(parts("rag")),
        fragments=on_validation([layout.prepared("fragments")]),
        volumes=lambda w: volumes(plan.validation_volumes(w.model, w.segmentation)),
    output:
        layout.output("tune"),
    log:
        "logs/tune/{model}.seed{seed}.{segmentation}.log",
    benchmark:
        "logs/tune/{model}.seed{seed}.{segmentation}.tsv"
    conda:
        environment("segmentation")
    threads: need("tune").threads
    resources:
        mem_mb=memory("tune"),
        runtime=need("tune").runtime,
    params:
        config=lambda w: plan.tune(w.segmentation),
    shell:
        "python -m tokenunify tune"
        " --config-json {params.config:q}"
        " --rags {input.rags:q}"
        " --fragments {input.fragments:q}"
        " --volumes {input.volumes:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule agglomerate:
    input:
        rag=for_fragments(parts("rag")[:1]),
        rag_parts=for_fragments(parts("rag")),
        tuned=tuned,
    output:
        manifest=layout.output("agglomerate"),
        lut=f"{layout.SEGMENTATION}/lut.npy",
    log:
        "logs/agglomerate/{volume}.{model}.seed{seed}.{segmentation}.log",
    benchmark:
        "logs/agglomerate/{volume}.{model}.seed{seed}.{segmentation}.tsv"
    conda:
        environment("segmentation")
    threads: need("agglomerate").threads
    resources:
        mem_mb=memory("agglomerate"),
        runtime=need("agglomerate").runtime,
    params:
        config=lambda w: plan.agglomerate(w.segmentation),
    shell:
        "python -m tokenunify agglomerate"
        " --config-json {params.config:q}"
        " --rag {input.rag:q}"
        " --tuned {input.tuned:q}"
        " --output {output.manifest:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


use rule prepare_predict as prepare_relabel with:
    input:
        fragments=for_fragments([layout.prepared("fragments")]),
        lut=rules.agglomerate.output.manifest,
    output:
        layout.prepared("relabel"),
    log:
        "logs/prepare/{volume}.{model}.seed{seed}.{segmentation}.log",
    wildcard_constraints:
        model="[^/]+",
    params:
        stage="relabel",
        config=lambda w: plan.relabel(),


rule relabel:
    input:
        fragments=for_fragments([layout.prepared("fragments")]),
        fragment_parts=for_fragments(parts("fragments")),
        lut=rules.agglomerate.output.manifest,
        lut_file=rules.agglomerate.output.lut,
        prepared=rules.prepare_relabel.output,
    output:
        layout.part("relabel"),
    log:
        "logs/relabel/{volume}.{model}.seed{seed}.{segmentation}.part{part}of{parts}.log",
    benchmark:
        "logs/relabel/{volume}.{model}.seed{seed}.{segmentation}.part{part}of{parts}.tsv"
    conda:
        environment("segmentation")
    threads: need("relabel").threads
    resources:
        mem_mb=memory("relabel"),
        runtime=need("relabel").runtime,
    params:
        config=lambda w: plan.relabel(),
    shell:
        "python -m tokenunify relabel"
        " --config-json {params.config:q}"
        " --fragments {input.fragments:q}"
        " --lut {input.lut:q}"
        " --prepared {input.prepared:q}"
        " --part {wildcards.part}/{wildcards.parts}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"
