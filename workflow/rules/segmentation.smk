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
        "data/volumes/{volume}.json",
    output:
        f"results/{{volume}}/{BASELINE}/seed0/predict/prepared.json",
    log:
        f"logs/prepare/{{volume}}.{BASELINE}.seed0.predict.log",
    wildcard_constraints:
        volume="[^/]+",
    params:
        stage="baseline",
        config=lambda w: plan.baseline(),


rule baseline:
    input:
        raw="data/volumes/{volume}.json",
        prepared=rules.prepare_baseline.output,
    output:
        f"results/{{volume}}/{BASELINE}/seed0/predict/part{{part}}of{{parts}}.json",
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
        " &> {log:q}"


use rule prepare_predict as prepare_fragments with:
    input:
        affinities=f"{PREDICT}/prepared.json",
        volume="data/volumes/{volume}.json",
    output:
        f"{FRAGMENTS}/prepared.json",
    log:
        "logs/prepare/{volume}.{model}.seed{seed}.{fragments}.log",
    wildcard_constraints:
        model="[^/]+",
    params:
        stage="fragments",
        config=lambda w: plan.fragments(w.fragments),


rule fragments:
    input:
        affinities=f"{PREDICT}/prepared.json",
        parts=affinity_parts,
        volume="data/volumes/{volume}.json",
        prepared=rules.prepare_fragments.output,
    output:
        f"{FRAGMENTS}/part{{part}}of{{parts}}.json",
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
        " &> {log:q}"


rule rag:
    input:
        affinities=f"{PREDICT}/prepared.json",
        affinity_parts=affinity_parts,
        fragments=f"{FRAGMENTS}/prepared.json",
        fragment_parts=parts("fragments", FRAGMENTS),
    output:
        f"{RAG}/part{{part}}of{{parts}}.json",
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
        " &> {log:q}"


rule tune:
    input:
        rags=on_validation(parts("rag", RAG)[:1]),
        rag_parts=on_validation(parts("rag", RAG)),
        fragments=on_validation([f"{FRAGMENTS}/prepared.json"]),
        volumes=lambda w: volumes(plan.validation_volumes(w.model, w.segmentation)),
    output:
        "models/{model}/seed{seed}/tune/{segmentation}.json",
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
        " &> {log:q}"


rule agglomerate:
    input:
        rag=for_fragments(parts("rag", RAG)[:1]),
        rag_parts=for_fragments(parts("rag", RAG)),
        tuned=tuned,
    output:
        manifest=f"{RUN}/{{segmentation}}/agglomerate.json",
        lut=f"{RUN}/{{segmentation}}/lut.npy",
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
        " &> {log:q}"


use rule prepare_predict as prepare_relabel with:
    input:
        fragments=for_fragments([f"{FRAGMENTS}/prepared.json"]),
        lut=rules.agglomerate.output.manifest,
    output:
        f"{RELABEL}/prepared.json",
    log:
        "logs/prepare/{volume}.{model}.seed{seed}.{segmentation}.log",
    wildcard_constraints:
        model="[^/]+",
    params:
        stage="relabel",
        config=lambda w: plan.relabel(),


rule relabel:
    input:
        fragments=for_fragments([f"{FRAGMENTS}/prepared.json"]),
        fragment_parts=for_fragments(parts("fragments", FRAGMENTS)),
        lut=rules.agglomerate.output.manifest,
        lut_file=rules.agglomerate.output.lut,
        prepared=rules.prepare_relabel.output,
    output:
        f"{RELABEL}/part{{part}}of{{parts}}.json",
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
        " &> {log:q}"
