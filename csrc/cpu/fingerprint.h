// A number that tells whether memory has changed, at the speed of reading it.
#pragma once

#include <cstdint>

namespace finescope {

// Bytes of a chunk; fingerprints of chunks are added up, in any order.
inline constexpr int64_t kFingerprintChunk = int64_t{1} << 16;

// The contribution of chunk number `index`, whose bytes these are. Depends on the place of every byte; a
// change within a single 64-bit word changes it for certain, any other with a probability of about 1 - 2^-64.
// It is no defence against an adversary.
uint64_t fingerprint_chunk(const char* data, int64_t bytes, int64_t index);

}  // namespace finescope
