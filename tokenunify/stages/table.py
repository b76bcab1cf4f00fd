"""Version of every stage: raise one when its results change, and that stage and what follows reruns."""

STAGES = {
    "download": 1,
    "ingest": 1,
    "pretrain": 3,
    "finetune": 3,
    "predict": 1,
    "baseline": 1,
    "fragments": 4,
    "rag": 3,
    "tune": 3,
    "agglomerate": 3,
    "relabel": 2,
    "evaluate": 6,
    "blockings": 1,
    "metrics": 2,
    "report": 4,
}
