#!/usr/bin/env bash
# Five families of models whose real tokens change when their row is padded on the right, though the attention mask says
# what is padding; a sixth doesn't. And a tokenizer out of a GGUF file that cuts words in another way than the file says,
# without a word. FineScope isn't run. Installs pinned public packages into a temporary folder, prints versions and what
# was seen, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 gguf==0.18.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import logging
import os
import sys

os.environ["TRANSFORMERS_VERBOSITY"] = "warning"
import gguf
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

print("python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)
changed = []


def seen(what, got, expected):
    print(f"{what}\n    {got!r}")
    if got != expected:
        changed.append(f"{what}: {got!r}, was {expected!r}")


# 1. Twenty tokens alone, and the same with eight positions of padding behind them, masked out.
small = dict(vocab_size=96, hidden_size=64, num_hidden_layers=2, intermediate_size=96, max_position_embeddings=128)
more = {"mobilebert": dict(embedding_size=64), "convbert": dict(embedding_size=64)}
ids = (torch.arange(20) * 7 % 80 + 2)[None]
padded = torch.nn.functional.pad(ids, (0, 8))
mask = torch.ones_like(padded)
mask[:, 20:] = 0
for family, leaks in [
    ("bert", False),
    ("fnet", True),
    ("nystromformer", True),
    ("convbert", True),
    ("mobilebert", True),
    ("yoso", True),
]:
    heads = {} if family == "fnet" else {"num_attention_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **small, **heads, **more.get(family, {}), pad_token_id=0)
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * 0.6 / parameter.shape[-1] ** 0.5
    masked = {} if family == "fnet" else {"attention_mask": mask}  # FNet takes none
    with torch.no_grad():
        alone = model(input_ids=ids).last_hidden_state
        beside = model(input_ids=padded, **masked).last_hidden_state[:, :20]
    gap = float((alone - beside).norm() / alone.norm())
    seen(f"1. {family}: real tokens change by {gap:.1%}; by more than 1%?", gap > 0.01, leaks)

# 2. Two files that differ in one word: how text is cut before letters are merged. "smollm" cuts numbers into digits.
def tokens(pre):
    path = os.path.join(sys.argv[1], f"{pre}.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    words = ["<|end|>", *map(chr, range(33, 127)), "12"]
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=f"{pre}.gguf")
    return found.convert_ids_to_tokens(found("a12")["input_ids"])


class Said(logging.Handler):
    records = []

    def emit(self, record):
        self.records.append(record.getMessage())


transformers.utils.logging.get_logger("transformers").addHandler(Said())
seen("2. 'a12' cut as Qwen2 does, which transformers knows", tokens("qwen2"), ["a", "1", "2"])
seen("   'a12' cut as SmolLM does: into digits, says the file", tokens("smollm"), ["a", "12"])
seen("   'a12' cut in no way that exists", tokens("no-such-thing"), ["a", "12"])
seen("   said of that", [line for line in Said.records if "pre" in line], [])

if changed:
    sys.exit("not as it was:\n" + "\n".join(changed))
PY
