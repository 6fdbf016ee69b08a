#!/usr/bin/env bash
# Four things that libraries of sparse autoencoders do with their own valid files and that surprised us while we read and
# wrote those; FineScope isn't run. Installs pinned public packages into a temporary folder (torch comes along: some
# minutes), prints versions and what was seen, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision # comes with nnsight, and may be of another build than torch
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'EOF'
import contextlib
import importlib.metadata
import io
import json
import sys
from pathlib import Path

import torch
from dictionary_learning import AutoEncoder
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader
from sparsify import SparseCoder, SparseCoderConfig

names = ("torch", "sae-lens", "eai-sparsify", "dictionary-learning")
print("python", sys.version.split()[0], *(f"{name} {importlib.metadata.version(name)}" for name in names))
changed = []
torch.manual_seed(0)
x = torch.randn(64, 16)


def seen(what, got, expected):
    print(f"{what}\n    {got!r}")
    if got != expected:
        changed.append(f"{what}: {got!r}, was {expected!r}")


def error(run):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return run()
        except Exception as caught:
            return f"{type(caught).__name__}: {caught}".splitlines()[0]


# 1. sparsify: with multi_topk, whose term belongs to the loss, calling a coder gives 4k latents; encoding gives k.
coder = SparseCoder(16, SparseCoderConfig(num_latents=64, k=4, multi_topk=True))
seen("1. sparsify, k=4: latents of encode", coder.encode(x).top_indices.shape[1], 4)
seen("   of a call", coder(x).latent_indices.shape[1], 16)

# 2. SAELens' loader of sparsify's files doesn't load what sparsify writes.
coder.save_to_disk("layers.3")
loaded = error(lambda: sparsify_disk_loader("layers.3"))
seen("2. sparsify_disk_loader loads it", not isinstance(loaded, str), False)
print(f"    {loaded}")

# 3. dictionary_learning: a dictionary that was saved and loaded gives other codes than before.
dictionary = AutoEncoder(16, 64)
Path("dictionary").mkdir()
torch.save(dictionary.state_dict(), "dictionary/ae.pt")
Path("dictionary/config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
again, _ = load_dictionary("dictionary", "cpu")
ratio = (again.encode(x).sum() / dictionary.encode(x).sum()).item()
seen("3. codes after loading, as a share of those before", round(ratio, 3), 0.1)

# 4. SAELens: without its k, a TopK's file is loaded with k=100.
topk = TopKSAE(TopKSAEConfig(d_in=16, d_sae=512, k=4))
topk.save_model("topk")
place = Path("topk/cfg.json")
config = json.loads(place.read_text())
del config["k"]
place.write_text(json.dumps(config))
with contextlib.redirect_stdout(io.StringIO()):
    k = SAE.load_from_disk("topk").cfg.k
seen("4. k of a file that has none", k, 100)

if changed:
    sys.exit("not as it was:\n" + "\n".join(changed))
EOF
