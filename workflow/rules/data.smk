"""From public sources to OME-Zarr volumes, and published weights.

INPUTS   sources named in the configuration
OUTPUTS  data/downloads/{volume}.json   which source was used and its checksums (files beside it)
         data/weights/{model}.json      the same for published weights
         data/volumes/{volume}.json     manifest of data/volumes/{volume}.zarr (raw, labels, mask, pyramids)

What downloads are allowed to do (`permit`) decides no result. So it is a resource: a change of these reruns nothing.
"""


rule download:
    output:
        layout.output("download"),
    log:
        "logs/download/{volume}.log",
    benchmark:
        "logs/download/{volume}.tsv"
    conda:
        environment("data")
    threads: need("download").threads
    resources:
        mem_mb=memory("download"),
        runtime=need("download").runtime,
        permit=plan.download_permit,
    params:
        config=lambda w: explained(plan.download, w.volume),
    shell:
        "python -m tokenunify download"
        " --config-json {params.config:q}"
        f" --downloads {layout.DOWNLOADS}"
        " --permit {resources.permit:q}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"


use rule download as download_weights with:
    output:
        layout.output("download_weights"),
    log:
        "logs/download_weights/{model}.log",
    benchmark:
        "logs/download_weights/{model}.tsv"
    params:
        config=lambda w: explained(plan.download_weights, w.model),


rule ingest:
    input:
        rules.download.output,
    output:
        layout.output("ingest"),
    log:
        "logs/ingest/{volume}.log",
    benchmark:
        "logs/ingest/{volume}.tsv"
    conda:
        environment("data")
    threads: need("ingest").threads
    resources:
        mem_mb=memory("ingest"),
        runtime=need("ingest").runtime,
        permit=plan.download_permit,
    params:
        config=lambda w: explained(plan.ingest, w.volume),
    shell:
        "python -m tokenunify ingest"
        " --config-json {params.config:q}"
        " --source {input:q}"
        " --permit {resources.permit:q}"
        " --threads {threads}"
        " --output {output:q}"
        " --marker {log:q}.bad-input"
        " &> {log:q}"
