"""Pre-training, fine-tuning and prediction of affinities.

INPUTS   data/volumes/{volume}.json
         models/pretrain/{pretraining}/seed{seed}/weights.json, or data/weights/{model}.json, where a model has such a start
OUTPUTS  models/pretrain/{pretraining}/seed{seed}/         weights.json and what it is the manifest of, log.csv, pictures
         models/{model}/seed{seed}/weights.json           manifest of weights.safetensors; transfer.csv, log.csv
         results/{volume}/{model}/seed{seed}/predict/     prepared.json names the store, one manifest per part

`threads` is what a job is scheduled with, and Snakemake caps it by --cores; `torch_threads` is what torch computes with,
which decides the last bits of a result and so is the configuration's alone.
"""


rule pretrain:
    input:
        lambda w: volumes(explained(plan.corpus_volumes, w.pretraining)),
    output:
        manifest=layout.output("pretrain"),
        weights=f"{layout.PRETRAINING}/weights.safetensors",
        curves=f"{layout.PRETRAINING}/log.csv",
        pictures=f"{layout.PRETRAINING}/reconstructions.png",
    log:
        "logs/pretrain/{pretraining}.seed{seed}.log",
    benchmark:
        "logs/pretrain/{pretraining}.seed{seed}.tsv"
    conda:
        environment("learning")
    threads: need("pretrain").threads
    resources:
        **devices("pretrain"),
        torch_threads=need("pretrain").threads,
        mem_mb=memory("pretrain"),
        runtime=need("pretrain").runtime,
    params:
        config=lambda w: plan.pretrain(w.pretraining),
        device=plan.config.device,
    shell:
        "{resources.launch}python -m tokenunify pretrain"
        " --config-json {params.config:q}"
        " --volumes {input:q}"
        " --seed {wildcards.seed}"
        " --threads {resources.torch_threads}"
        " --device {params.device}"
        " --output {output.manifest:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule finetune:
    input:
        train=trained_on("train"),
        validation=trained_on("validation"),
        pretrained=pretrained,
        published=published,
    output:
        manifest=layout.output("finetune"),
        weights=f"{layout.TRAINING}/weights.safetensors",
        transfer=f"{layout.TRAINING}/transfer.csv",
        curves=f"{layout.TRAINING}/log.csv",
    log:
        "logs/finetune/{model}.seed{seed}.log",
    benchmark:
        "logs/finetune/{model}.seed{seed}.tsv"
    conda:
        environment("learning")
    threads: need("finetune").threads
    resources:
        **devices("finetune"),
        torch_threads=need("finetune").threads,
        mem_mb=memory("finetune"),
        runtime=need("finetune").runtime,
    params:
        config=lambda w: plan.finetune(w.model),
        device=plan.config.device,
    shell:
        "{resources.launch}python -m tokenunify finetune"
        " --config-json {params.config:q}"
        " --train {input.train:q}"
        " --validation {input.validation:q}"
        " --pretrained {input.pretrained:q}"
        " --published {input.published:q}"
        " --seed {wildcards.seed}"
        " --threads {resources.torch_threads}"
        " --device {params.device}"
        " --output {output.manifest:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule prepare_predict:
    input:
        raw=layout.output("ingest"),
        weights=rules.finetune.output.manifest,
    output:
        layout.prepared("predict"),
    log:
        "logs/prepare/{volume}.{model}.seed{seed}.predict.log",
    wildcard_constraints:
        model=f"(?!{BASELINE}/)[^/]+",
    localrule: True
    conda:
        environment("segmentation")
    params:
        stage="predict",
        config=lambda w: plan.predict(w.model),
    shell:
        "python -m tokenunify prepare"
        " --stage {params.stage}"
        " --config-json {params.config:q}"
        " --inputs {input:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


rule predict:
    input:
        raw=layout.output("ingest"),
        weights=rules.finetune.output.manifest,
        prepared=rules.prepare_predict.output,
    output:
        layout.part("predict"),
    log:
        "logs/predict/{volume}.{model}.seed{seed}.part{part}of{parts}.log",
    benchmark:
        "logs/predict/{volume}.{model}.seed{seed}.part{part}of{parts}.tsv"
    wildcard_constraints:
        model=f"(?!{BASELINE}/)[^/]+",
    conda:
        environment("learning")
    threads: need("predict").threads
    resources:
        torch_threads=need("predict").threads,
        mem_mb=memory("predict"),
        runtime=need("predict").runtime,
        gpu=min(1, gpus("predict")),
    params:
        config=lambda w: plan.predict(w.model),
        device=plan.config.device,
    shell:
        "python -m tokenunify predict"
        " --config-json {params.config:q}"
        " --raw {input.raw:q}"
        " --weights {input.weights:q}"
        " --prepared {input.prepared:q}"
        " --part {wildcards.part}/{wildcards.parts}"
        " --threads {resources.torch_threads}"
        " --device {params.device}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"
