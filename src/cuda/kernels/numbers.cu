// Numbers and how they are read and written: eight at a time, 16 bytes at once where they stand so.

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct alignas(16) Vector { u32 words[4]; };

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
INLINE float to_float(f16 x) { return float_of_f16(x.bits); }
INLINE u32 pack(float a, float b, bf16) { return pack_bf16(a, b); }
INLINE u32 pack(float a, float b, f16) { return pack_f16(a, b); }
INLINE void round_to(float x, float& to) { to = x; }
INLINE void round_to(float x, bf16& to) { to.bits = (u16)pack_bf16(x, 0.f); }
INLINE void round_to(float x, f16& to) { to.bits = (u16)pack_f16(x, 0.f); }
INLINE float rounded_to_bf16(float x) { bf16 r; round_to(x, r); return to_float(r); }

INLINE u32 least(u32 a, u32 b) { return a < b ? a : b; }
INLINE u32 divided_up(u32 a, u32 b) { return (a + b - 1) / b; }
template <class T> INLINE bool is_aligned(const T* p) { return ((u64)p & 15) == 0; }

INLINE void unpack8(const Vector* from, float* to, bf16) {
  const Vector v = *from;
  #pragma unroll
  for (int i = 0; i < 4; i++) { to[2 * i] = __uint_as_float(v.words[i] << 16); to[2 * i + 1] = __uint_as_float(v.words[i] & 0xffff0000u); }
}
INLINE void unpack8(const Vector* from, float* to, f16) {
  const Vector v = *from;
  #pragma unroll
  for (int i = 0; i < 4; i++) { to[2 * i] = float_of_f16((u16)v.words[i]); to[2 * i + 1] = float_of_f16((u16)(v.words[i] >> 16)); }
}
INLINE void unpack8(const Vector* from, float* to, float) {
  #pragma unroll
  for (int part = 0; part < 2; part++) {
    const Vector v = from[part];
    #pragma unroll
    for (int i = 0; i < 4; i++) to[part * 4 + i] = __uint_as_float(v.words[i]);
  }
}
// Eight aligned numbers.
template <class T> INLINE void load_vectors(const T* from, float* to) { unpack8((const Vector*)from, to, T{}); }
// The first `count` of eight numbers, zeros behind. `count` may be more than eight.
template <class T> INLINE void load8(const T* from, u32 count, float* to) {
  if (count >= 8 && is_aligned(from)) {
    load_vectors(from, to);
  } else {
    #pragma unroll
    for (int i = 0; i < 8; i++) to[i] = i < count ? to_float(from[i]) : 0.f;
  }
}

INLINE Vector packed8(const float* v, bf16 t) { return {{pack(v[0], v[1], t), pack(v[2], v[3], t), pack(v[4], v[5], t), pack(v[6], v[7], t)}}; }
INLINE Vector packed8(const float* v, f16 t) { return {{pack(v[0], v[1], t), pack(v[2], v[3], t), pack(v[4], v[5], t), pack(v[6], v[7], t)}}; }
INLINE void store_vectors(float* to, const float* v) {
  #pragma unroll
  for (int i = 0; i < 2; i++) ((Vector*)to)[i] = {{__float_as_uint(v[4 * i]), __float_as_uint(v[4 * i + 1]), __float_as_uint(v[4 * i + 2]), __float_as_uint(v[4 * i + 3])}};
}
INLINE void store_vectors(bf16* to, const float* v) { *(Vector*)to = packed8(v, bf16{}); }
INLINE void store_vectors(f16* to, const float* v) { *(Vector*)to = packed8(v, f16{}); }

// Writes the first `count` of eight numbers, rounded to the nearest.
template <class T> INLINE void store8(T* to, u32 count, const float* v) {
  if (count >= 8 && is_aligned(to)) {
    store_vectors(to, v);
  } else {
    #pragma unroll
    for (int i = 0; i < 8; i++) if (i < count) round_to(v[i], to[i]);
  }
}

// Copies bits.
template <class T> INLINE void copy8(T* to, const T* from, u32 count) {
  if (count >= 8 && is_aligned(from) && is_aligned(to)) {
    #pragma unroll
    for (int part = 0; part < (int)sizeof(T) / 2; part++) ((Vector*)to)[part] = ((const Vector*)from)[part];
  } else {
    #pragma unroll
    for (int i = 0; i < 8; i++) if (i < count) to[i] = from[i];
  }
}

// Butterflies: every lane has the sum, and all in the same order.
template <int LANES> INLINE float lanes_sum(float x) {
  #pragma unroll
  for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
INLINE float warp_max(float x) {
  #pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
// Of 256 threads, all of which call it.
INLINE float block_sum(float x) {
  __shared__ float of_warps[8];
  x = lanes_sum<32>(x);
  __syncthreads(); // the last sum has been read
  if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x >> 5] = x;
  __syncthreads();
  x = 0.f;
  #pragma unroll
  for (int i = 0; i < 8; i++) x += of_warps[i];
  return x;
}

// Does f(row, column, count) for each eight columns of each row, whatever the grid.
template <class F> INLINE void each_eight(u32 rows, u32 width, F f) {
  const u32 eights = divided_up(width, 8);
  const u64 total = (u64)rows * eights;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += (u64)gridDim.x * blockDim.x) {
    const u64 row = total >> 32 ? i / eights : (u32)i / eights; // the short division, where it will do
    const u32 column = (u32)(i - row * eights) * 8;
    f(row, column, least(8, width - column));
  }
}

// Which row of the batch stands at a place.
INLINE u32 row_at(const u32* which, u32 start, u64 place) { return which ? which[start + place] : start + (u32)place; }
