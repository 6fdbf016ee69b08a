"""Names of the files and folders below a run's output folder."""

ACTIVATIONS = "activations"
SAE = "sae"
CORPUS_CODES = "codes/corpus"
TARGET_CODES = "codes/targets"
CODES = {"corpus": CORPUS_CODES, "targets": TARGET_CODES}
SCORES = "scores.parquet"
SELECTION = "selection.parquet"
METRICS = "metrics.json"
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
REPORT = "report.html"
PLOTS = "plots"
