// CUDA on the CPU, for tests only: this header stands in for NVIDIA's, so that the kernels' own source can be
// compiled as C++ and run without a GPU, one block after the other.
//
// A thread of a block is a fiber on a stack of its own. It runs until it meets a barrier or an exchange
// between lanes, then the next one runs; in which order is drawn anew from FINESCOPE_FIBER_ORDER each time,
// so that a missing barrier shows as a result that depends on that seed. Misaligned access ends the process
// (build.py asks the compiler for that). What this cannot show: the speed, and the memory model between
// blocks that run at the same time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) alignas(n)

using std::isfinite;
using std::isnan;

// Aligned as on the device.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

typedef struct CUstream_st* cudaStream_t;
using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) {
  return "";
}

// Kernels have run when their launch returns.
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

namespace cuda_on_cpu {

constexpr size_t kStack = size_t{64} << 10;

struct Fiber {
  dim3 thread;
  int flat = 0;
  jmp_buf here;
  ucontext_t start;
  std::unique_ptr<char[]> stack{new char[kStack]};
  const void* waiting = nullptr;  // the meeting this fiber stands in
  bool done = false;
};

// Where `wanted` fibers meet; the last one opens it for all.
struct Meeting {
  int arrived = 0;
};

// What the lanes of a warp hand to each other. Two rounds of slots, used in turn: a lane may be one exchange
// ahead of another that has not read yet.
struct Warp {
  Meeting meeting;
  uint64_t slot[2][32];
  int round = 0;
  int live = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Meeting barrier;
  int live = 0;
  std::vector<char> shared;
  dim3 grid, size, index;
  const std::function<void()>* body = nullptr;
  jmp_buf scheduler;
  uint64_t random = 0;
  bool trapped = false;
  int64_t* waits = nullptr;
};

inline Block block;
inline Fiber* current = nullptr;

inline uint64_t next_random() {
  block.random = block.random * 6364136223846793005u + 1442695040888963407u;
  return block.random >> 33;
}

inline void yield() {
  if (_setjmp(current->here) == 0) _longjmp(block.scheduler, 1);
}

inline void open(Meeting& meeting) {
  meeting.arrived = 0;
  for (auto& fiber : block.fibers) {
    if (fiber->waiting == &meeting) fiber->waiting = nullptr;
  }
}

inline void meet(Meeting& meeting, int wanted) {
  if (++meeting.arrived == wanted) {
    open(meeting);
  } else {
    current->waiting = &meeting;
    ++*block.waits;
    yield();
  }
}

inline Warp& warp() {
  return block.warps[static_cast<size_t>(current->flat / 32)];
}
inline int lane() {
  return current->flat % 32;
}

// A fiber that ends no longer counts at the barriers the others stand at.
inline void finish() {
  current->done = true;
  --block.live;
  Warp& mine = warp();
  --mine.live;
  if (block.live > 0 && block.barrier.arrived == block.live) open(block.barrier);
  if (mine.live > 0 && mine.meeting.arrived == mine.live) open(mine.meeting);
  _longjmp(block.scheduler, 1);
}

inline void enter() {
  (*block.body)();
  finish();
}

inline void run_block() {
  const int threads = static_cast<int>(block.size.x * block.size.y * block.size.z);
  while (static_cast<int>(block.fibers.size()) < threads) block.fibers.push_back(std::make_unique<Fiber>());
  block.fibers.resize(static_cast<size_t>(threads));
  block.warps.assign(static_cast<size_t>((threads + 31) / 32), Warp{});
  block.barrier = {};
  block.live = threads;
  // Nothing may count on shared memory that was not written.
  std::fill(block.shared.begin(), block.shared.end(), static_cast<char>(0xa5));
  std::vector<int> order(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = *block.fibers[static_cast<size_t>(t)];
    fiber.flat = t;
    fiber.thread =
        dim3(static_cast<unsigned>(t) % block.size.x, static_cast<unsigned>(t) / block.size.x % block.size.y,
             static_cast<unsigned>(t) / (block.size.x * block.size.y));
    fiber.waiting = nullptr;
    fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
    ++block.warps[static_cast<size_t>(t / 32)].live;
    order[static_cast<size_t>(t)] = t;
  }
  std::vector<char> begun(static_cast<size_t>(threads), 0);
  static volatile int ran;
  volatile int round = 0;
  while (block.live > 0) {
    // Drawing takes longer than running; a new order now and then is enough.
    if (block.random != 0 && (round = round + 1) % 16 == 1) {
      for (int t = threads - 1; t > 0; --t) {
        std::swap(order[static_cast<size_t>(t)], order[next_random() % static_cast<uint64_t>(t + 1)]);
      }
    }
    ran = 0;
    for (volatile int place = 0; place < threads; place = place + 1) {
      const int t = order[static_cast<size_t>(place)];
      Fiber* fiber = block.fibers[static_cast<size_t>(t)].get();
      if (fiber->done || fiber->waiting != nullptr) continue;
      ran = ran + 1;
      current = fiber;
      if (_setjmp(block.scheduler) == 0) {
        if (begun[static_cast<size_t>(t)]) _longjmp(fiber->here, 1);
        begun[static_cast<size_t>(t)] = 1;
        setcontext(&fiber->start);
      }
      if (block.trapped) return;
    }
    if (ran == 0) {
      std::fprintf(stderr,
                   "cuda_on_cpu: the threads of a block wait for each other (a barrier or an "
                   "exchange that some of them do not reach)\n");
      std::abort();
    }
  }
}

// How often threads waited, by kernel: a kernel that had nothing to do never did.
inline std::map<std::string, int64_t> waits;

inline void run(const char* what, dim3 grid, dim3 size, size_t shared, const std::function<void()>& body) {
  block.waits = &waits[what];
  const char* seed = std::getenv("FINESCOPE_FIBER_ORDER");
  block.random = seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0;
  if (grid.y > 65535 || grid.z > 65535 || size.x * size.y * size.z > 1024) {
    throw std::runtime_error(std::string(what) + ": more blocks or threads than a device takes");
  }
  block.grid = grid;
  block.size = size;
  block.shared.resize(shared + 64);
  block.body = &body;
  block.trapped = false;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = dim3(x, y, z);
        run_block();
        // On the device the error comes with the next call that waits.
        if (block.trapped) throw std::runtime_error("a kernel stopped: its message is above");
      }
    }
  }
}

inline void* dynamic_shared() {
  const uintptr_t at = reinterpret_cast<uintptr_t>(block.shared.data());
  return reinterpret_cast<void*>((at + 63) / 64 * 64);
}

// Every live lane of the warp gives a value; the slots of all lanes are returned. Only whole warps can
// exchange (a mask of fewer lanes than are live is refused), which is all that the kernels do.
template <class T>
const uint64_t* exchange(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8, "lanes exchange up to 8 bytes");
  Warp& mine = warp();
  if (mask != 0xffffffffu && __builtin_popcount(mask) < mine.live) {
    std::fprintf(stderr, "cuda_on_cpu: an exchange between some lanes of a warp (mask %08x)\n", mask);
    std::abort();
  }
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  uint64_t* slots = mine.slot[mine.round];
  slots[lane()] = bits;
  if (mine.meeting.arrived + 1 == mine.live) mine.round ^= 1;
  meet(mine.meeting, mine.live);
  return slots;
}

template <class T>
T read(const uint64_t* slots, int from) {
  T value;
  std::memcpy(&value, &slots[from], sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::current->thread)
#define blockIdx (cuda_on_cpu::block.index)
#define blockDim (cuda_on_cpu::block.size)
#define gridDim (cuda_on_cpu::block.grid)
inline constexpr int warpSize = 32;

inline void __syncthreads() {
  cuda_on_cpu::meet(cuda_on_cpu::block.barrier, cuda_on_cpu::block.live);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_on_cpu::exchange(mask, 0);
}
inline int __syncthreads_or(int predicate) {
  static int any;
  __syncthreads();
  if (cuda_on_cpu::current->flat == 0) any = 0;
  __syncthreads();
  if (predicate) any = 1;
  __syncthreads();
  return any;
}
inline int __syncthreads_count(int predicate) {
  static int count;
  __syncthreads();
  if (cuda_on_cpu::current->flat == 0) count = 0;
  __syncthreads();
  if (predicate) ++count;
  __syncthreads();
  return count;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int lane = cuda_on_cpu::lane(), first = lane / width * width;
  const uint64_t* slots = cuda_on_cpu::exchange(mask, value);
  return cuda_on_cpu::read<T>(slots, first + from % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  const int lane = cuda_on_cpu::lane(), from = lane ^ with;
  const uint64_t* slots = cuda_on_cpu::exchange(mask, value);
  return cuda_on_cpu::read<T>(slots, from < lane / width * width + width ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = cuda_on_cpu::lane(), from = lane + static_cast<int>(by);
  const uint64_t* slots = cuda_on_cpu::exchange(mask, value);
  return cuda_on_cpu::read<T>(slots, from < lane / width * width + width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = cuda_on_cpu::lane(), from = lane - static_cast<int>(by);
  const uint64_t* slots = cuda_on_cpu::exchange(mask, value);
  return cuda_on_cpu::read<T>(slots, from >= lane / width * width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* slots = cuda_on_cpu::exchange(mask, predicate != 0 ? 1 : 0);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (((mask >> lane) & 1) && cuda_on_cpu::read<int>(slots, lane)) found |= 1u << lane;
  }
  return found;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, !predicate) == 0;
}

// One fiber runs at a time and switches only where it waits: plain operations are atomic here.
template <class T, class U>
T atomicAdd(T* at, U value) {
  const T old = *at;
  *at = old + static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicMax(T* at, U value) {
  const T old = *at;
  *at = std::max(old, static_cast<T>(value));
  return old;
}
template <class T, class U>
T atomicMin(T* at, U value) {
  const T old = *at;
  *at = std::min(old, static_cast<T>(value));
  return old;
}
template <class T, class U>
T atomicOr(T* at, U value) {
  const T old = *at;
  *at = old | static_cast<T>(value);
  return old;
}
template <class T, class U>
T atomicExch(T* at, U value) {
  const T old = *at;
  *at = static_cast<T>(value);
  return old;
}
template <class T, class U, class V>
T atomicCAS(T* at, U expected, V value) {
  const T old = *at;
  if (old == static_cast<T>(expected)) *at = static_cast<T>(value);
  return old;
}
[[noreturn]] inline void __trap() {
  // No thread of the block goes on: what follows may rely on what was found wrong.
  cuda_on_cpu::block.trapped = true;
  _longjmp(cuda_on_cpu::block.scheduler, 1);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class To, class From>
To cuda_on_cpu_bits(From value) {
  To bits;
  static_assert(sizeof(To) == sizeof(From), "same size");
  std::memcpy(&bits, &value, sizeof(To));
  return bits;
}
inline int __float_as_int(float x) {
  return cuda_on_cpu_bits<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return cuda_on_cpu_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
  return cuda_on_cpu_bits<float>(x);
}
inline float __uint_as_float(unsigned x) {
  return cuda_on_cpu_bits<float>(x);
}
inline long long __double_as_longlong(double x) {
  return cuda_on_cpu_bits<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return cuda_on_cpu_bits<double>(x);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
