// A card that is played on the CPU: the text of a kernel, compiled by a C++ compiler behind this file instead of kernels/asm.cu,
// runs as it would on a card, one block after the other, each of a block's threads a fiber.
//
// What it shows: a number computed wrongly, a read or a write outside of shared memory, memory used before it was written (shared
// memory begins as NaN), a barrier or a shuffle that not all threads come to, a tile that is read before its copies were waited
// for (Order::late) or written while others still read it (Order::early), threads that count on the order of warps.
// What it cannot show: races that neither order of warps nor the two times of copies bring to light, conflicts of banks, how
// many registers there are, anything about time, and the last bits of the card's own ex2, rsqrt and mma.

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE static inline
#define INLINE_MEMBER inline
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All of it in one section, so that it can be filled before each block. Only in functions that are no templates.
#define __shared__ static __attribute__((section("shared_of_block")))

struct Dimensions { u32 x, y, z; };
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace play {

// ---- threads ----

constexpr u32 LANES = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 128 << 10, MOST_SHARED = 227 << 10;

struct Copy { u32 to, bytes; const void* from; };
struct Fiber {
  jmp_buf at;
  ucontext_t first;
  bool is_started = false, is_done = true;
  const u64* waits_for = nullptr; // until this is no longer `seen`
  u64 seen = 0;
  std::vector<std::vector<Copy>> groups; // of copies under way, the oldest first
  std::vector<Copy> open;
};
// Threads that come together: the last one works for all.
struct Gathering {
  u32 arrived = 0;
  u64 times = 0;
  const char* what = nullptr;
  void* each[LANES];
};
struct Order {
  bool is_reversed; // warps from the last to the first
  bool is_early;    // asynchronous copies are done when they are asked for, else when they are waited for
};

static std::vector<Fiber> fibers;
static Gathering warps[MOST_THREADS / LANES], block;
static jmp_buf scheduler;
static u32 current;
static Order order;
static std::string problem;
static void (*call)(void**);
static void** arguments;
alignas(128) static unsigned char dynamic_shared[MOST_SHARED];
static u32 dynamic_bytes;

__attribute__((noinline)) static void leave() {
  asm volatile("" ::: "memory");
  if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
  asm volatile("" ::: "memory");
}
// What a thread does wrong ends the launch; the fiber never runs on.
static void fail(const std::string& what) {
  if (problem.empty()) problem = "thread " + std::to_string(threadIdx.x) + " of block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + "): " + what;
  for (;;) leave();
}
static void wait_for(const u64& times) {
  fibers[current].waits_for = &times;
  fibers[current].seen = times;
  leave();
}
static void live() {
  for (;;) {
    call(arguments);
    fibers[current].is_done = true;
    leave();
  }
}
__attribute__((noinline)) static void resume(u32 thread) {
  current = thread;
  threadIdx = {thread, 0, 0};
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler)) return;
  if (fiber.is_started) _longjmp(fiber.at, 1);
  fiber.is_started = true;
  setcontext(&fiber.first);
}
static void make_fibers(u32 threads) {
  static unsigned char* stacks = nullptr;
  if (!stacks) stacks = (unsigned char*)mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  fibers.resize(MOST_THREADS);
  for (u32 i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    if (fiber.is_started) continue;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = stacks + STACK * i;
    fiber.first.uc_stack.ss_size = STACK;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, live, 0);
  }
}

// Waits for all lanes of the warp; `work` sees what each of them brought, and writes into it.
template <class T> void together(const char* what, T& mine, void (*work)(T**)) {
  Gathering& warp = warps[current / LANES];
  if (warp.arrived && std::strcmp(warp.what, what)) fail(std::string("comes to ") + what + " where another lane is at " + warp.what);
  warp.what = what;
  warp.each[current % LANES] = &mine;
  if (++warp.arrived < LANES) return wait_for(warp.times);
  work((T**)warp.each);
  warp.arrived = 0;
  warp.times++;
}
static void come_to_barrier() {
  block.what = "__syncthreads";
  if (++block.arrived < blockDim.x) return wait_for(block.times);
  block.arrived = 0;
  block.times++;
}

static void run_block(u32 threads) {
  for (u32 i = 0; i < threads; i++) {
    fibers[i].is_done = false;
    fibers[i].waits_for = nullptr;
    fibers[i].groups.clear();
    fibers[i].open.clear();
  }
  const u32 count = threads / LANES;
  for (bool is_moving = true; is_moving;) {
    is_moving = false;
    for (u32 w = 0; w < count; w++) {
      const u32 first = (order.is_reversed ? count - 1 - w : w) * LANES;
      for (bool warp_moves = true; warp_moves;) {
        warp_moves = false;
        for (u32 i = first; i < first + LANES; i++) {
          if (fibers[i].is_done || (fibers[i].waits_for && *fibers[i].waits_for == fibers[i].seen)) continue;
          resume(i);
          if (!problem.empty()) return;
          is_moving = warp_moves = true;
        }
      }
    }
  }
  for (u32 i = 0; i < threads; i++) {
    if (fibers[i].is_done) continue;
    const Gathering& at = fibers[i].waits_for == &block.times ? block : warps[i / LANES];
    problem = "thread " + std::to_string(i) + " waits at " + at.what + " for threads that do not come";
    return;
  }
}

// ---- kernels by name ----

struct Kernel {
  void (*call)(void**);
  std::string signature; // of each parameter: p a pointer, u an unsigned, f a float
};
static std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}
template <class T> constexpr char letter(T*) { return 'p'; }
constexpr char letter(u32) { return 'u'; }
constexpr char letter(float) { return 'f'; }
template <auto F> struct Caller;
template <class... A, void (*F)(A...)> struct Caller<F> {
  template <size_t... I> static void unpack(void** from, std::index_sequence<I...>) { F(*(A*)from[I]...); }
  static void call(void** from) { unpack(from, std::index_sequence_for<A...>{}); }
  static std::string signature() { return {letter(A{})...}; }
};
template <auto F> bool add(const char* name) {
  kernels()[name] = {Caller<F>::call, Caller<F>::signature()};
  return true;
}

// ---- shared memory ----

static unsigned char* at_shared(u32 address, u32 bytes) {
  if (address % 16 || (u64)address + bytes > dynamic_bytes) fail("uses shared memory at " + std::to_string(address) + ", of " + std::to_string(dynamic_bytes) + " bytes");
  return dynamic_shared + address;
}
static void copy_now(const Copy& copy) {
  unsigned char* to = at_shared(copy.to, 16);
  std::memset(to, 0, 16);
  std::memcpy(to, copy.from, copy.bytes);
}
static void finish_groups(size_t but) {
  auto& groups = fibers[current].groups;
  while (groups.size() > but) {
    for (const Copy& copy : groups.front()) copy_now(copy);
    groups.erase(groups.begin());
  }
}

// ---- numbers ----

static u32 bits_of(float x) { u32 bits; std::memcpy(&bits, &x, 4); return bits; }
static float of_bits(u32 bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static u16 to_bf16(float x) {
  const u32 bits = bits_of(x);
  if (std::isnan(x)) return 0x7fff;
  return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static u16 to_f16(float x) {
  const u16 sign = (u16)(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  if (size < 6.103515625e-05f) return sign | (u16)std::nearbyint(size * 16777216.f); // in steps of 2^-24
  const u32 bits = bits_of(size);
  return sign | (u16)((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}
static float from_f16(u16 bits) {
  const u32 sign = (u32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 0x3ff;
  if (exponent == 31) return of_bits(sign | 0x7f800000 | rest << 13);
  const float size = exponent ? of_bits((exponent + 112) << 23 | rest << 13) : rest * (1.f / 16777216.f);
  return sign ? -size : size;
}
static float from_bf16(u16 bits) { return of_bits((u32)bits << 16); }

struct Product { float* c; const u32* a; u32 b[2]; };
template <float (*FROM)(u16)> void multiply(Product** lanes) {
  float a[16][16], b[16][8];
  const auto half = [](u32 word, u32 i) { return FROM((u16)(word >> 16 * i)); };
  for (u32 lane = 0; lane < LANES; lane++) {
    const u32 row = lane / 4, column = lane % 4 * 2;
    for (u32 i = 0; i < 2; i++) {
      for (u32 part = 0; part < 4; part++) a[row + part % 2 * 8][column + part / 2 * 8 + i] = half(lanes[lane]->a[part], i);
      for (u32 part = 0; part < 2; part++) b[column + part * 8 + i][row] = half(lanes[lane]->b[part], i);
    }
  }
  for (u32 lane = 0; lane < LANES; lane++)
    for (u32 i = 0; i < 4; i++) {
      const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = lanes[lane]->c[i];
      for (u32 k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      lanes[lane]->c[i] = sum;
    }
}

struct Matrices { u32* r; u32 address; };
template <bool TURNED> void load(Matrices** lanes) {
  for (u32 matrix = 0; matrix < 4; matrix++) {
    u16 rows[8][8];
    for (u32 row = 0; row < 8; row++) std::memcpy(rows[row], dynamic_shared + lanes[matrix * 8 + row]->address, 16);
    for (u32 lane = 0; lane < LANES; lane++) {
      const u32 row = lane / 4, column = lane % 4 * 2;
      const u16 low = TURNED ? rows[column][row] : rows[row][column], high = TURNED ? rows[column + 1][row] : rows[row][column + 1];
      lanes[lane]->r[matrix] = (u32)high << 16 | low;
    }
  }
}

template <class T> struct Shuffle { T value; u32 from; T result; };
template <class T> T shuffle(const char* what, u32 mask, T value, u32 from) {
  if (mask != ~0u) fail("shuffles with a part of its warp");
  Shuffle<T> mine{value, from % LANES, value};
  together<Shuffle<T>>(what, mine, [](Shuffle<T>** lanes) { for (u32 i = 0; i < LANES; i++) lanes[i]->result = lanes[lanes[i]->from]->value; });
  return mine.result;
}

} // namespace play

// ---- what kernels call ----

#define PLAYED(kernel) static const bool is_played_##kernel = play::add<kernel>(#kernel);

INLINE unsigned char* shared_memory() { return play::dynamic_shared; }
INLINE u32 shared_address(const void* pointer) { return (u32)((const unsigned char*)pointer - play::dynamic_shared); }
INLINE u32 pack_bf16(float a, float b) { return play::to_bf16(a) | (u32)play::to_bf16(b) << 16; }
INLINE u32 pack_f16(float a, float b) { return play::to_f16(a) | (u32)play::to_f16(b) << 16; }
INLINE float float_of_f16(u16 bits) { return play::from_f16(bits); }
INLINE float ex2(float x) { const float y = std::exp2(std::fabs(x) < 1.17549435e-38f ? 0.f : x); return std::fabs(y) < 1.17549435e-38f ? 0.f : y; }
INLINE void mma_bf16(float* c, const u32* a, u32 b0, u32 b1) { play::Product mine{c, a, {b0, b1}}; play::together<play::Product>("mma", mine, play::multiply<play::from_bf16>); }
INLINE void mma_f16(float* c, const u32* a, u32 b0, u32 b1) { play::Product mine{c, a, {b0, b1}}; play::together<play::Product>("mma", mine, play::multiply<play::from_f16>); }
INLINE void load_matrices(u32* r, u32 address) { play::at_shared(address, 16); play::Matrices mine{r, address}; play::together<play::Matrices>("ldmatrix", mine, play::load<false>); }
INLINE void load_turned(u32* r, u32 address) { play::at_shared(address, 16); play::Matrices mine{r, address}; play::together<play::Matrices>("ldmatrix.trans", mine, play::load<true>); }
INLINE void copy_async(u32 to, const void* from, u32 bytes) {
  if ((u64)from % 16) play::fail("copies from an address that is no multiple of 16");
  if (play::order.is_early) play::copy_now({to, bytes, from});
  else play::fibers[play::current].open.push_back({to, bytes, from});
}
INLINE void commit_copies() { auto& fiber = play::fibers[play::current]; fiber.groups.push_back(std::move(fiber.open)); fiber.open.clear(); }
template <int N> INLINE void wait_for_copies() { play::finish_groups(N); }

INLINE void __syncthreads() { play::come_to_barrier(); }
INLINE void __syncwarp() { u32 mine = 0; play::together<u32>("__syncwarp", mine, [](u32**) {}); }
template <class T> INLINE T __shfl_xor_sync(u32 mask, T x, int lanes) { return play::shuffle("shfl.xor", mask, x, threadIdx.x ^ (u32)lanes); }
template <class T> INLINE T __shfl_sync(u32 mask, T x, int lane) { return play::shuffle("shfl", mask, x, (u32)lane); }
INLINE float __uint_as_float(u32 bits) { return play::of_bits(bits); }
INLINE float __int_as_float(int bits) { return play::of_bits((u32)bits); }
INLINE u32 __float_as_uint(float x) { return play::bits_of(x); }
INLINE float rsqrtf(float x) { return 1.f / std::sqrt(x); }
#define __expf expf

// ---- what this library is asked ----

extern "C" char __start_shared_of_block[] __attribute__((weak)), __stop_shared_of_block[] __attribute__((weak));

extern "C" const char* play_signature(const char* name) {
  const auto found = play::kernels().find(name);
  return found == play::kernels().end() ? nullptr : found->second.signature.c_str();
}
// Null, or what went wrong. One launch at a time.
extern "C" const char* play_launch(const char* name, const u32* grid, u32 threads, u32 shared, void** arguments, u32 is_reversed, u32 is_early) {
  using namespace play;
  const auto found = kernels().find(name);
  if (found == kernels().end()) return "no such kernel";
  if (!threads || threads > MOST_THREADS || threads % LANES) return "a block is of whole warps, 1024 threads at most";
  if (shared > MOST_SHARED) return "a block has at most 227 KiB of shared memory";
  problem.clear();
  call = found->second.call;
  play::arguments = arguments;
  order = {is_reversed != 0, is_early != 0};
  dynamic_bytes = shared;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  make_fibers(threads);
  for (u32 z = 0; z < grid[2]; z++)
    for (u32 y = 0; y < grid[1]; y++)
      for (u32 x = 0; x < grid[0]; x++) {
        blockIdx = {x, y, z};
        std::memset(dynamic_shared, 0xff, shared);
        if (__start_shared_of_block) std::memset(__start_shared_of_block, 0xff, __stop_shared_of_block - __start_shared_of_block);
        run_block(threads);
        if (!problem.empty()) {
          fibers.clear(); // some are in the midst of a kernel
          for (auto& warp : warps) warp = {};
          block = {};
          return problem.c_str();
        }
      }
  return nullptr;
}
