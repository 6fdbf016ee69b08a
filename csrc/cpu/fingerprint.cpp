#include "cpu/fingerprint.h"

#include <cstring>

namespace finescope {
namespace {

constexpr int kLanes = 8;
constexpr int64_t kStripe = kLanes * 8;
constexpr int kRound = 16;  // stripes between two scrambles; each has a key of its own

inline uint64_t mix(uint64_t h) {
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
  return h ^ (h >> 31);
}

struct Keys {
  uint64_t key[kLanes + kRound];
  Keys() {
    for (int i = 0; i < kLanes + kRound; ++i)
      key[i] = mix(0x9e3779b97f4a7c15u * static_cast<uint64_t>(i + 1));
  }
};

// Halves of a word are multiplied with each other, after a key has been mixed in, which makes the sum depend
// on the place of every word; and each word is added to its neighbour's lane, so that no change of it is
// lost where the other half is zero.
inline void add(uint64_t* lane, const uint64_t* word, const uint64_t* key) {
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t v = word[i] ^ key[i];
    lane[i] += word[i ^ 1] + (v & 0xffffffffu) * (v >> 32);
  }
}

}  // namespace

uint64_t fingerprint_chunk(const char* data, int64_t bytes, int64_t index) {
  static const Keys keys;
  uint64_t lane[kLanes];
  std::memcpy(lane, keys.key, sizeof(lane));
  uint64_t word[kLanes];
  int64_t at = 0;
  for (int stripe = 0; at + kStripe <= bytes; at += kStripe) {
    std::memcpy(word, data + at, kStripe);
    add(lane, word, keys.key + stripe);
    if (++stripe < kRound) continue;
    stripe = 0;
    for (uint64_t& l : lane) l = (l ^ (l >> 47)) * 0x9e3779b1u;  // a bijection
  }
  if (at < bytes) {
    std::memset(word, 0, sizeof(word));
    std::memcpy(word, data + at, static_cast<size_t>(bytes - at));
    add(lane, word, keys.key + kRound - 1);
  }
  uint64_t h = mix(static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(bytes));
  for (uint64_t l : lane) h = mix(h ^ l);
  return h;
}

}  // namespace finescope
