// Norms over runs of columns, and rotary embedding. Sums are in an order that the width alone decides.

// Up to this many columns a warp has a run; above it a block of 256 threads has it.
#define WARP_RUN 1024

// The sum over a warp, or over the block.
INLINE float group_sum(float x, u32 group) { return group == 32 ? lanes_sum<32>(x) : block_sum(x); }

// Eights that a thread keeps of a run; those of runs that are longer still are read again.
#define HELD 4

// Does f(column, eight numbers) for all that a thread has of a run.
template <class A, class F> INLINE void each_held(u32 group, const A* x, u32 run, float held[HELD][8], F f) {
  const u32 me = threadIdx.x % group;
  #pragma unroll
  for (int h = 0; h < HELD; h++) {
    const u32 column = (h * group + me) * 8;
    if (column < run) f(column, held[h]);
  }
  #pragma unroll 1
  for (u32 column = (HELD * group + me) * 8; column < run; column += group * 8) {
    float v[8];
    load_vectors(x + column, v);
    f(column, v);
  }
}

// One run, of `group` threads. BIAS: layer norm, around the mean; else RMS norm. Runs of whole aligned eights stay in registers.
template <bool BIAS, class A, class B> INLINE void norm_eights(u32 group, const A* x, u32 run, const float* weight, const float* bias, float eps, float* wide, B* out) {
  float held[HELD][8];
  #pragma unroll
  for (int h = 0; h < HELD; h++) {
    const u32 column = (h * group + threadIdx.x % group) * 8;
    if (column < run) load_vectors(x + column, held[h]);
  }
  float sum = 0.f, mean = 0.f;
  if constexpr (BIAS) {
    each_held(group, x, run, held, [&](u32, const float* v) {
      #pragma unroll
      for (int i = 0; i < 8; i++) sum += v[i];
    });
    mean = group_sum(sum, group) / (float)run;
    sum = 0.f;
  }
  each_held(group, x, run, held, [&](u32, const float* v) {
    #pragma unroll
    for (int i = 0; i < 8; i++) sum += (v[i] - mean) * (v[i] - mean);
  });
  const float factor = rsqrtf(group_sum(sum, group) / (float)run + eps);
  each_held(group, x, run, held, [&](u32 column, const float* v) {
    float w[8], b[8] = {}, y[8];
    load_vectors(weight + column, w);
    if constexpr (BIAS) load_vectors(bias + column, b);
    #pragma unroll
    for (int i = 0; i < 8; i++) y[i] = (v[i] - mean) * factor * w[i] + b[i];
    if (wide) store_vectors(wide + column, y);
    if (out) store_vectors(out + column, y);
  });
}

// The same for any width, a column at a time.
template <bool BIAS, class A, class B> INLINE void norm_columns(u32 group, const A* x, u32 run, const float* weight, const float* bias, float eps, float* wide, B* out) {
  const u32 me = threadIdx.x % group;
  float sum = 0.f, mean = 0.f;
  if constexpr (BIAS) {
    for (u32 i = me; i < run; i += group) sum += to_float(x[i]);
    mean = group_sum(sum, group) / (float)run;
    sum = 0.f;
  }
  for (u32 i = me; i < run; i += group) sum += (to_float(x[i]) - mean) * (to_float(x[i]) - mean);
  const float factor = rsqrtf(group_sum(sum, group) / (float)run + eps);
  for (u32 i = me; i < run; i += group) {
    const float y = (to_float(x[i]) - mean) * factor * weight[i] + (BIAS ? bias[i] : 0.f);
    if (wide) wide[i] = y;
    if (out) round_to(y, out[i]);
  }
}

// Any grid of 256 threads: a block has eight runs of up to WARP_RUN columns, or one that is longer. `wide` or `out` may be `x`.
template <bool BIAS, class A, class B> INLINE void norm(const A* x, u32 x_stride, u32 rows, u32 runs, u32 run, const float* weight, const float* bias, float eps, float* wide, u32 wide_stride, B* out, u32 out_stride) {
  const u64 total = (u64)rows * runs;
  const u32 group = run <= WARP_RUN ? 32 : 256, at_once = 256 / group;
  const bool is_whole = run % 8 == 0 && is_aligned(x) && is_aligned(weight) && is_aligned(bias) && is_aligned(wide) && is_aligned(out);
  for (u64 i = (u64)blockIdx.x * at_once + threadIdx.x / group; i < total; i += (u64)gridDim.x * at_once) {
    const u64 row = total >> 32 ? i / runs : (u32)i / runs, column = (i - row * runs) * run;
    const A* from = x + row * x_stride + column;
    float* to_wide = wide ? wide + row * wide_stride + column : nullptr;
    B* to = out ? out + row * out_stride + column : nullptr;
    if (is_whole) norm_eights<BIAS>(group, from, run, weight, bias, eps, to_wide, to);
    else norm_columns<BIAS>(group, from, run, weight, bias, eps, to_wide, to);
  }
}

// Turns each pair (i, i + pairs) of each head, by the angles that its row of the batch has in the table of cosines and sines.
template <class T> INLINE void rotary(T* x, u32 x_stride, u32 rows, u32 heads, u32 head_dim, const float* cos, const float* sin, u32 pairs, const u32* of_rows, const u32* which, u32 start) {
  const u32 eights = divided_up(pairs, 8);
  each_eight(rows, heads * eights * 8, [&](u64 place, u32 item, u32) {
    const u32 head = item / 8 / eights, i = (item / 8 % eights) * 8, count = pairs - i;
    const u64 angle = (u64)of_rows[row_at(which, start, place)] * pairs + i;
    T* low = x + place * x_stride + head * head_dim + i;
    T* high = low + pairs;
    float a[8], b[8], c[8], s[8], turned[8];
    load8(low, count, a);
    load8(high, count, b);
    load8(cos + angle, count, c);
    load8(sin + angle, count, s);
    #pragma unroll
    for (int j = 0; j < 8; j++) turned[j] = a[j] * c[j] - b[j] * s[j];
    store8(low, count, turned);
    #pragma unroll
    for (int j = 0; j < 8; j++) turned[j] = b[j] * c[j] + a[j] * s[j];
    store8(high, count, turned);
  });
}

// RMS norm of each head, then rotary, rounded once. LANES threads have a head, each eight of its pairs; what is behind the pairs
// is normed only. Any grid of 256 threads.
template <int LANES, class T> INLINE void norm_rotary_of(T* x, u32 x_stride, u32 rows, u32 heads, u32 head_dim, const float* cos, const float* sin, u32 pairs, const u32* of_rows, const u32* which, u32 start, const float* weight, float eps) {
  constexpr u32 AT_ONCE = 256 / LANES;
  const u32 me = threadIdx.x % LANES, i = me * 8, count = i < pairs ? pairs - i : 0;
  const u64 total = (u64)rows * heads;
  // All lanes of a warp stay to the end, since they add together.
  for (u64 first = (u64)blockIdx.x * AT_ONCE; first < total; first += (u64)gridDim.x * AT_ONCE) {
    const u64 item = first + threadIdx.x / LANES;
    const bool is_there = item < total;
    const u64 place = is_there ? (total >> 32 ? item / heads : (u32)item / heads) : 0;
    T* head = x + place * x_stride + (is_there ? (u32)(item - place * heads) : 0) * head_dim;
    float a[8] = {}, b[8] = {}, sum = 0.f;
    if (is_there && count) {
      load8(head + i, count, a);
      load8(head + pairs + i, count, b);
      #pragma unroll
      for (int j = 0; j < 8; j++) sum += a[j] * a[j] + b[j] * b[j];
    }
    if (is_there) for (u32 r = 2 * pairs + me; r < head_dim; r += LANES) sum += to_float(head[r]) * to_float(head[r]);
    const float factor = rsqrtf(lanes_sum<LANES>(sum) / (float)head_dim + eps);
    if (!is_there) continue;
    if (count) {
      const u64 angle = (u64)of_rows[row_at(which, start, place)] * pairs + i;
      float c[8], s[8], w[8], turned[8];
      load8(weight + i, count, w);
      #pragma unroll
      for (int j = 0; j < 8; j++) a[j] *= factor * w[j];
      load8(weight + pairs + i, count, w);
      #pragma unroll
      for (int j = 0; j < 8; j++) b[j] *= factor * w[j];
      load8(cos + angle, count, c);
      load8(sin + angle, count, s);
      #pragma unroll
      for (int j = 0; j < 8; j++) turned[j] = a[j] * c[j] - b[j] * s[j];
      store8(head + i, count, turned);
      #pragma unroll
      for (int j = 0; j < 8; j++) turned[j] = b[j] * c[j] + a[j] * s[j];
      store8(head + pairs + i, count, turned);
    }
    for (u32 r = 2 * pairs + me; r < head_dim; r += LANES) round_to(to_float(head[r]) * (factor * weight[r]), head[r]);
  }
}
// Heads have at most 256 columns, so at most 128 pairs.
template <class T> INLINE void norm_rotary(T* x, u32 x_stride, u32 rows, u32 heads, u32 head_dim, const float* cos, const float* sin, u32 pairs, const u32* of_rows, const u32* which, u32 start, const float* weight, float eps) {
  if (pairs <= 64) norm_rotary_of<8>(x, x_stride, rows, heads, head_dim, cos, sin, pairs, of_rows, which, start, weight, eps);
  else norm_rotary_of<16>(x, x_stride, rows, heads, head_dim, cos, sin, pairs, of_rows, which, start, weight, eps);
}

#define NORMS(L, A, B) \
  extern "C" __global__ void __launch_bounds__(256) rms_norm_##L(const A* x, u32 x_stride, u32 rows, u32 runs, u32 run, const float* weight, float eps, float* wide, u32 wide_stride, B* out, u32 out_stride) { norm<false>(x, x_stride, rows, runs, run, weight, nullptr, eps, wide, wide_stride, out, out_stride); } PLAYED(rms_norm_##L) \
  extern "C" __global__ void __launch_bounds__(256) layer_norm_##L(const A* x, u32 x_stride, u32 rows, u32 runs, u32 run, const float* weight, const float* bias, float eps, float* wide, u32 wide_stride, B* out, u32 out_stride) { norm<true>(x, x_stride, rows, runs, run, weight, bias, eps, wide, wide_stride, out, out_stride); } PLAYED(layer_norm_##L)
NORMS(ff, float, float)
NORMS(fb, float, bf16)
NORMS(fh, float, f16)
NORMS(bb, bf16, bf16)
NORMS(hh, f16, f16)

#define ROTARY(L, T) \
  extern "C" __global__ void __launch_bounds__(256) rotary_##L(T* x, u32 x_stride, u32 rows, u32 heads, u32 head_dim, const float* cos, const float* sin, u32 pairs, const u32* of_rows, const u32* which, u32 start) { rotary(x, x_stride, rows, heads, head_dim, cos, sin, pairs, of_rows, which, start); } PLAYED(rotary_##L) \
  extern "C" __global__ void __launch_bounds__(256) norm_rotary_##L(T* x, u32 x_stride, u32 rows, u32 heads, u32 head_dim, const float* cos, const float* sin, u32 pairs, const u32* of_rows, const u32* which, u32 start, const float* weight, float eps) { norm_rotary(x, x_stride, rows, heads, head_dim, cos, sin, pairs, of_rows, which, start, weight, eps); } PLAYED(norm_rotary_##L)
ROTARY(f, float)
ROTARY(b, bf16)
ROTARY(h, f16)
