#!/usr/bin/env bash
# datasets: a dataset with a column of translations can't be saved once it has a column of images, too. FineScope isn't
# run.
#
# save_to_disk and to_parquet of rows with the feature Translation work, and of rows with Image as well; of rows with both
# they raise AttributeError: 'Translation' object has no attribute 'items'. On the way to the images, the feature of every
# struct is asked for its items. And save_to_disk of a dataset without rows writes a folder that load_from_disk can't read:
# IndexError. The guess was that what can be saved alone can be saved together, and that what was saved can be loaded.
#
# Installs pinned public packages into a temporary folder. Ends with 0 as long as datasets 5.2.0 does this, with 1 once it
# doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pillow==12.3.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys

import datasets
import pyarrow
from datasets import Dataset, Features, Image, Translation
from PIL import Image as Picture

print("python", sys.version.split()[0], "datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
datasets.disable_progress_bars()
features = {"said": Translation(["de", "en"]), "seen": Image()}
row = {"said": {"de": "Katze", "en": "cat"}, "seen": Picture.new("RGB", (2, 2))}
changed = []


def seen(what, call, expected):
    try:
        call()
        got = "fine"
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
    print(f"{what}: {got}")
    if got != expected:
        changed.append(f"{what}: {got}, was {expected}")


broken = "AttributeError: 'Translation' object has no attribute 'items'"
for names, expected in ((["said"], "fine"), (["seen"], "fine"), (["said", "seen"], broken)):
    data = Dataset.from_list(
        [{name: row[name] for name in names}], features=Features({name: features[name] for name in names})
    )
    place = os.path.join(sys.argv[1], "-".join(names))
    seen(f"save_to_disk of {names}", lambda: data.save_to_disk(place), expected)
    seen(f"to_parquet of {names}", lambda: data.to_parquet(f"{place}.parquet"), expected)
empty = os.path.join(sys.argv[1], "empty")
seen("save_to_disk of no rows", lambda: Dataset.from_dict({"text": ["a"]}).select([]).save_to_disk(empty), "fine")
seen("load_from_disk of that", lambda: datasets.load_from_disk(empty), "IndexError: list index out of range")
sys.exit("; ".join(changed) or 0)
PYTHON
