"""Synthetic activations with a known answer: five domains in sparse features, buried in common style."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DOMAINS = ("stem", "humanities", "business", "arts", "social_sciences")
"""The five domains of the supplement."""

_CONTENT = 0.5
"""Share of tokens led by a feature of a domain; the others are led by a common one, as function words are."""
_CONTENT_STRENGTH = 1.5
"""Strength of a leading domain feature relative to a common one of median gain."""
_BACKGROUND = 3
"""Further common features in every token."""
_BACKGROUND_STRENGTH = 0.3
"""Their strength relative to a leading one."""
_STYLE_SPREAD = 0.3
"""Standard deviation of the logarithm of a document's gain on each common feature."""
_SEED_STYLE = 0.8
"""Share of the variance of the targets' style that all targets have in common."""
_OFFSET_NORM = 1.5
"""Norm of what every token has."""
_BLOCK_TOKENS = 16_384

_Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """The directions that all data sets of one width share.

    Attributes:
        offset: float32 [D], present in every token.
        common: float32 [C,D], unit rows.
        domains: name → float32 [P,D], unit rows.
    """

    offset: _Float32
    common: _Float32
    domains: dict[str, _Float32]


def build_world(hidden_dim: int) -> World:
    """Return the fixed directions for a width: they depend on ``hidden_dim`` and the domains' names only."""
    common = own = max(16, hidden_dim // 32)
    return World(
        _directions("offset", 1, hidden_dim)[0] * np.float32(_OFFSET_NORM),
        _directions("common", common, hidden_dim),
        {name: _directions(name, own, hidden_dim) for name in DOMAINS},
    )


def _directions(name: str, count: int, width: int) -> _Float32:
    """Unit vectors that are the same in every call and on every machine: seeded by a hash of their name."""
    digest = hashlib.sha256(f"finescope:{name}:{width}".encode()).digest()
    rows = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal((count, width))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def create_activation_dataset(
    target_domain: str = "stem",
    large_dataset_domains: Sequence[str] | None = None,
    target_samples: int = 50,
    large_dataset_samples: int = 1000,
    seq_len: int = 128,
    hidden_dim: int = 512,
    device: str = "cpu",
    *,
    mixing: float = 0.4,
    noise: float = 0.1,
    seed: int = 42,
) -> tuple[Tensor, Tensor, list[str]]:
    """Create target activations, a mixed pool, and the pool's labels.

    What is generated imitates what makes selection from language-model activations hard:

    - *Sparse features.* Half of the tokens are led by a direction of a domain, the others by one of a few
      common directions that every domain uses; three weaker common ones are added to each. Every domain owns
      a fixed set of directions, the same in the targets, in the pool and in every call, so that there is
      something to find.
    - *Topics.* A document uses only half of its domain's directions.
    - *Style.* Each document amplifies each common direction by its own log-normal factor, and the targets,
      like seeds from one source, nearly share theirs. In mean-pooled activations style is as strong as the
      domain: cosine finds documents of similar style, and subtracting the corpus mean leaves the targets'
      style in the query. A sparse code keeps common and domain directions apart, and idf weighting silences
      what fires everywhere.
    - *Mixing.* A share of a document's content tokens speaks of a random other domain.
    - An offset common to all tokens (activations of language models are far from centred), and white noise.

    Random selection finds the target domain at 1 / number of domains (20 % with the defaults).

    Args:
        target_domain: one of ``DOMAINS``.
        large_dataset_domains: domains of the pool in equal parts (counts differ by 1 at most); None takes all
            five.
        target_samples: T.
        large_dataset_samples: N; rows come in random order.
        seq_len: S, tokens per sample.
        hidden_dim: D.
        device: where the tensors go; they are always generated on the CPU, so the data do not depend on it.
        mixing: share in [0, 1] of content tokens that are led by another domain's direction.
        noise: norm of the white noise per token, relative to a leading direction.
        seed: of everything but the directions.

    Returns:
        float32 [T,S,D], float32 [N,S,D], and N labels.

    Raises:
        ValueError: unknown domain, negative size, or mixing or noise out of range.
    """
    pool_domains = list(DOMAINS if large_dataset_domains is None else large_dataset_domains)
    unknown = [name for name in [target_domain, *pool_domains] if name not in DOMAINS]
    if unknown:
        raise ValueError(f"unknown domain {unknown[0]!r}; known are {', '.join(DOMAINS)}")
    if not pool_domains and large_dataset_samples:
        raise ValueError("large_dataset_domains is empty, so the pool can't have samples")
    if min(target_samples, large_dataset_samples) < 0 or min(seq_len, hidden_dim) < 1:
        raise ValueError("sample counts must not be negative, seq_len and hidden_dim must be at least 1")
    if not 0 <= mixing <= 1 or noise < 0:
        raise ValueError(f"mixing must be in [0, 1] and noise not negative, got {mixing} and {noise}")
    world = build_world(hidden_dim)
    for_targets, for_pool, for_order = np.random.default_rng(seed).spawn(3)
    seed_style = for_targets.standard_normal((world.common.shape[0],), dtype=np.float32)
    targets = _documents(
        [target_domain] * target_samples, world, seq_len, mixing, noise, for_targets, seed_style
    )
    labels = [pool_domains[row % len(pool_domains)] for row in range(large_dataset_samples)]
    labels = [labels[row] for row in for_order.permutation(large_dataset_samples)]
    pool = _documents(labels, world, seq_len, mixing, noise, for_pool)
    return targets.to(device), pool.to(device), labels


def _documents(
    labels: Sequence[str],
    world: World,
    seq_len: int,
    mixing: float,
    noise: float,
    rng: np.random.Generator,
    shared_style: _Float32 | None = None,
) -> Tensor:
    """Activations [len(labels), S, D]; nothing larger than the result and one block of tokens is held."""
    width = world.offset.size
    result = np.empty((len(labels), seq_len, width), np.float32)
    rng.standard_normal(dtype=np.float32, out=result)
    # White noise has a norm of √D per unit of deviation; the leading feature of a token has one near 1.
    result *= np.float32(noise / np.sqrt(width))
    result += world.offset
    dictionary = torch.from_numpy(np.concatenate([world.common, *(world.domains[name] for name in DOMAINS)]))
    per_block = max(1, _BLOCK_TOKENS // seq_len)
    for low in range(0, len(labels), per_block):
        block = np.asarray([DOMAINS.index(label) for label in labels[low : low + per_block]], np.int64)
        features, strengths = _tokens(block, world, seq_len, mixing, rng, shared_style)
        signal = torch.nn.functional.embedding_bag(
            torch.from_numpy(features.reshape(-1, features.shape[-1])),
            dictionary,
            mode="sum",
            per_sample_weights=torch.from_numpy(strengths.reshape(-1, strengths.shape[-1])),
        )
        result[low : low + per_block] += signal.numpy().reshape(block.size, seq_len, width)
    return torch.from_numpy(result)


def _tokens(
    domains: NDArray[np.int64],
    world: World,
    seq_len: int,
    mixing: float,
    rng: np.random.Generator,
    shared_style: _Float32 | None,
) -> tuple[NDArray[np.int64], _Float32]:
    """Active directions of each token [n,S,A], as rows of the dictionary, and their strengths [n,S,A]."""
    count, common = domains.size, world.common.shape[0]
    own = world.domains[DOMAINS[0]].shape[0]
    manner = rng.standard_normal((count, common), dtype=np.float32)
    if shared_style is not None:
        manner = np.float32(_SEED_STYLE**0.5) * shared_style + np.float32((1 - _SEED_STYLE) ** 0.5) * manner
    gain = np.exp(np.float32(_STYLE_SPREAD) * manner)
    document = np.arange(count)[:, None]

    def common_features(*shape: int) -> NDArray[np.int64]:
        # A skewed frequency, like that of words.
        return np.asarray(common * rng.random((count, *shape)) ** 1.5, dtype=np.int64)

    other = (domains[:, None] + rng.integers(1, len(DOMAINS), (count, seq_len))) % len(DOMAINS)
    spoken = np.where(rng.random((count, seq_len)) < mixing, other, domains[:, None])
    topic = np.argsort(rng.random((count, own)), axis=1)[:, : max(1, own // 2)]
    subject = topic[document, rng.integers(0, topic.shape[1], (count, seq_len))]
    everyday, background = common_features(seq_len), common_features(seq_len, _BACKGROUND)

    content = rng.random((count, seq_len)) < _CONTENT
    leading = np.where(content, common + own * spoken + subject, everyday)
    strength = np.where(content, np.float32(_CONTENT_STRENGTH), gain[document, everyday])
    features = np.concatenate([leading[..., None], background], axis=2)
    strengths = np.concatenate(
        [strength[..., None], _BACKGROUND_STRENGTH * gain[document[..., None], background]], axis=2
    )
    strengths *= 0.75 + 0.5 * rng.random(strengths.shape, dtype=np.float32)
    return features, strengths.astype(np.float32)
