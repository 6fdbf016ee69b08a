"""What no file of some public autoencoders says, by their names on the hub.

Source: ``pretrained_saes.yaml`` of SAELens 6.54.12: norm_scaling_factor of gpt2-small-mlp-tm, gemma-2b-res-jb
and llama_scope_r1_distill; center_writing_weights and normalize_activations among its overrides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_MLP_OUT = {
    "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1": 1.049317316132615,
    "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0": 2.3693984005104283,
    "sae_group_gpt2_blocks.2.hook_mlp_out_24576:v0": 1.6411934982190302,
    "sae_group_gpt2_blocks.3.hook_mlp_out_24576:v0": 1.8958522157897557,
    "sae_group_gpt2_blocks.4.hook_mlp_out_24576:v0": 1.81673478700627,
    "sae_group_gpt2_blocks.5.hook_mlp_out_24576:v0": 1.550234472245924,
    "sae_group_gpt2_blocks.6.hook_mlp_out_24576:v0": 1.3237742807210804,
    "sae_group_gpt2_blocks.7.hook_mlp_out_24576:v0": 1.1042905114723296,
    "sae_group_gpt2_blocks.8.hook_mlp_out_24576:v1": 0.9123762783479742,
    "sae_group_gpt2_blocks.9.hook_mlp_out_24576:v0": 0.6955335635232373,
    "sae_group_gpt2_blocks.10.hook_mlp_out_24576:v0": 0.3619728926727644,
    "sae_group_gpt2_blocks.11.hook_mlp_out_24576:v2": 0.2851548652550073,
}
_R1_DISTILL = {
    "800M-Slimpajama-0-OpenR1-Math-220k": (
        53.52995401997436, 37.07457226753229, 26.801271953747353, 20.258785842428143, 16.35620323956284,
        13.77273090622553, 11.802642616140206, 10.345622082873675, 9.52711219837399, 8.722802553532865,
        8.187374613072596, 7.681409438301019, 7.011470964851573, 6.507851835301529, 6.075830839342571,
        5.529329506982431, 5.04125765694814, 4.543060254752811, 4.136073768441771, 3.8186778444880143,
        3.4997662089479755, 3.114875161525094, 2.858677637086371, 2.6143620233159384, 2.406593266301888,
        2.2185540508553694, 2.038628827422577, 1.8664054897001374, 1.6914743009513147, 1.530389056066687,
        1.3378642198135962, 1.0963025732622191,
    ),
    "400M-Slimpajama-400M-OpenR1-Math-220k": (
        53.97673033497749, 36.76995792628666, 26.86329549484781, 20.473522361966317, 16.491433880849524,
        13.902529211394633, 11.959185891949216, 10.454685082137889, 9.625849752730096, 8.705443147441324,
        8.0884989084078, 7.449578399564585, 6.80144905444981, 6.331711239265464, 5.70284230018703,
        5.318041374444156, 4.79639347416429, 4.333554093692626, 3.9386839067851334, 3.584045063066589,
        3.4122850442674064, 2.9930188471058385, 2.7548717844301582, 2.5281942698718076, 2.326851186904894,
        2.101068654605767, 1.9361189375890395, 1.7784660082777055, 1.6635049539624462, 1.448853212514504,
        1.157008764313032, 1.041977999933546,
    ),
    "0-Slimpajama-800M-OpenR1-Math-220k": (
        54.308791085956486, 36.49473030775242, 26.96126387031055, 20.52210199911164, 16.67733543806145,
        14.067505043509176, 12.034338704494331, 10.495662821867164, 9.683004157081735, 8.679730500864236,
        7.988383971728427, 7.237531143695951, 6.69444885029299, 6.0489858065009265, 5.4935929917888595,
        4.970860531188141, 4.541887865516153, 4.111292885351861, 3.7319009471881754, 3.4464218438335172,
        3.1614163309538377, 2.8600260547627334, 2.636157171207381, 2.4287397996449367, 2.2405978768214556,
        2.034659098936678, 1.8430054630341937, 1.6554423260870552, 1.477070442772071, 1.3361543238773446,
        1.1387454210154435, 0.926395749048437,
    ),
}  # fmt: skip

# Of a repository: facts of all its autoencoders, and facts of single ones by the name of their folder.
_FACTS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "tommmcgrath/gpt2-small-mlp-out-saes": ({"center_writing_weights": True}, _MLP_OUT),
    "jbloom/GPT2-Small-SAEs-Reformatted": ({"center_writing_weights": True}, {}),
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": ({"center_writing_weights": True}, {}),
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": ({"normalize_activations": "constant_norm_rescale"}, {}),
    "jbloom/Gemma-2b-Residual-Stream-SAEs": (
        {},
        {"gemma_2b_blocks.12.hook_resid_post_16384": 0.21381938399317255},
    ),
    "fnlp/Llama-Scope-R1-Distill": (
        {},
        {f"{run}/L{layer}R": factor for run, row in _R1_DISTILL.items() for layer, factor in enumerate(row)},
    ),
}
_CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+(?:/(.*))?$")


def facts_of(repository: str, name: str) -> dict[str, Any]:
    """Return what is known of a public autoencoder.

    Args:
        repository: its name on the hub.
        name: of the folder in it.
    """
    shared, factors = _FACTS.get(repository, ({}, {}))
    factor = factors.get(name.strip("/"))
    return shared if factor is None else {**shared, "norm_scaling_factor": factor}


def facts_of_path(path: Path) -> dict[str, Any]:
    """Return the same for a folder or file in the hub's cache; nothing for any other."""
    cached = _CACHED.search(path.absolute().as_posix())
    return facts_of(f"{cached[1]}/{cached[2]}", cached[3] or "") if cached else {}
