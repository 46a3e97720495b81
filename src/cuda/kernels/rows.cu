// Rows that are looked up, moved, converted and added. A thread has eight columns of a row; where not said otherwise any grid of
// 256 threads is right.

// x[place] = (t0[i0[row]] + t1[i1[row]] + ..) · scale; a block for each place.
template <class T> INLINE void embed(float* x, u32 x_stride, u32 width, const T* t0, const T* t1, const T* t2, const T* t3, u32 t_stride, const u32* i0, const u32* i1, const u32* i2, const u32* i3, const u32* which, u32 start, float scale, u32 has_scale) {
  const T* tables[4] = {t0, t1, t2, t3};
  const u32* ids[4] = {i0, i1, i2, i3};
  const u64 place = blockIdx.x;
  const u32 row = row_at(which, start, place);
  for (u32 column = threadIdx.x * 8; column < width; column += blockDim.x * 8) {
    const u32 count = width - column;
    float sum[8] = {};
    #pragma unroll
    for (int t = 0; t < 4; t++) {
      if (!tables[t]) continue;
      float v[8];
      load8(tables[t] + (u64)ids[t][row] * t_stride + column, count, v);
      #pragma unroll
      for (int i = 0; i < 8; i++) sum[i] += v[i];
    }
    if (has_scale) {
      #pragma unroll
      for (int i = 0; i < 8; i++) sum[i] *= scale;
    }
    store8(x + place * x_stride + column, count, sum);
  }
}

// x[place] = table[start + place]; a block for each place.
template <class T> INLINE void rows_of(float* x, u32 x_stride, u32 width, const T* table, u32 t_stride, u32 start) {
  for (u32 column = threadIdx.x * 8; column < width; column += blockDim.x * 8) {
    float v[8];
    load8(table + ((u64)start + blockIdx.x) * t_stride + column, width - column, v);
    store8(x + (u64)blockIdx.x * x_stride + column, width - column, v);
  }
}

// x += y
template <class T> INLINE void add(float* x, u32 x_stride, const T* y, u32 y_stride, u32 rows, u32 width) {
  each_eight(rows, width, [&](u64 row, u32 column, u32 count) {
    float a[8], b[8];
    load8(x + row * x_stride + column, count, a);
    load8(y + row * y_stride + column, count, b);
    #pragma unroll
    for (int i = 0; i < 8; i++) a[i] += b[i];
    store8(x + row * x_stride + column, count, a);
  });
}

// Each column times its factor.
template <class T> INLINE void scale(T* x, u32 x_stride, const float* factors, u32 rows, u32 width) {
  each_eight(rows, width, [&](u64 row, u32 column, u32 count) {
    float a[8], b[8];
    load8(x + row * x_stride + column, count, a);
    load8(factors + column, count, b);
    #pragma unroll
    for (int i = 0; i < 8; i++) a[i] *= b[i];
    store8(x + row * x_stride + column, count, a);
  });
}

INLINE void convert8(const float* from, float* to, u32 count) { copy8(to, from, count); }
INLINE void convert8(const bf16* from, bf16* to, u32 count) { copy8(to, from, count); }
INLINE void convert8(const f16* from, f16* to, u32 count) { copy8(to, from, count); }
template <class A, class B> INLINE void convert8(const A* from, B* to, u32 count) {
  float v[8];
  load8(from, count, v);
  store8(to, count, v);
}
template <class A, class B> INLINE void convert(const A* from, u32 from_stride, B* to, u32 to_stride, u32 rows, u32 width) {
  each_eight(rows, width, [&](u64 row, u32 column, u32 count) { convert8(from + row * from_stride + column, to + row * to_stride + column, count); });
}

// to[i] = from[list[i]]
template <class T> INLINE void gather(const T* from, u32 from_stride, const u32* list, T* to, u32 to_stride, u32 count, u32 width) {
  each_eight(count, width, [&](u64 i, u32 column, u32 n) { copy8(to + i * to_stride + column, from + (u64)list[i] * from_stride + column, n); });
}

// The mean of each sequence's rows, which are in runs of (row, count), summed in their order. A thread has a column; the
// grid's y is over sequences.
template <class T> INLINE void mean(const T* from, u32 from_stride, const u32* first_run, const u32* runs, float* to, u32 to_stride, u32 sequences, u32 width) {
  for (u64 sequence = blockIdx.y; sequence < sequences; sequence += gridDim.y) {
    for (u32 column = blockIdx.x * blockDim.x + threadIdx.x; column < width; column += gridDim.x * blockDim.x) {
      float sum = 0.f;
      u32 total = 0;
      for (u32 run = first_run[sequence]; run < first_run[sequence + 1]; run++) {
        const u32 count = runs[2 * run + 1];
        const T* at = from + (u64)runs[2 * run] * from_stride + column;
        #pragma unroll 4
        for (u32 i = 0; i < count; i++) sum += to_float(at[(u64)i * from_stride]);
        total += count;
      }
      to[sequence * to_stride + column] = sum / (float)total;
    }
  }
}

// to[place][c · kernel + k] = from[row - kernel / 2 + k][column + c] within the row's segment, zero beyond.
template <class T> INLINE void neighbours(const T* from, u32 from_stride, u32 column, u32 columns, u32 kernel, const u32* bounds, const u32* which, u32 start, T* to, u32 to_stride, u32 rows) {
  for (u64 place = blockIdx.x; place < rows; place += gridDim.x) {
    const u32 row = row_at(which, start, place), first = bounds[2 * (u64)row], end = bounds[2 * (u64)row + 1];
    for (u32 i = threadIdx.x; i < columns * kernel; i += blockDim.x) {
      const u32 c = i / kernel, k = i % kernel;
      const long long at = (long long)row + k - kernel / 2;
      T value = {};
      if (at >= (long long)first && at < (long long)end) value = from[(u64)at * from_stride + column + c];
      to[place * to_stride + i] = value;
    }
  }
}

#define ROWS(L, T) \
  extern "C" __global__ void __launch_bounds__(256) embed_##L(float* x, u32 x_stride, u32 width, const T* t0, const T* t1, const T* t2, const T* t3, u32 t_stride, const u32* i0, const u32* i1, const u32* i2, const u32* i3, const u32* which, u32 start, float scale, u32 has_scale) { embed(x, x_stride, width, t0, t1, t2, t3, t_stride, i0, i1, i2, i3, which, start, scale, has_scale); } PLAYED(embed_##L) \
  extern "C" __global__ void __launch_bounds__(256) rows_of_##L(float* x, u32 x_stride, u32 width, const T* table, u32 t_stride, u32 start) { rows_of(x, x_stride, width, table, t_stride, start); } PLAYED(rows_of_##L) \
  extern "C" __global__ void __launch_bounds__(256) add_##L(float* x, u32 x_stride, const T* y, u32 y_stride, u32 rows, u32 width) { add(x, x_stride, y, y_stride, rows, width); } PLAYED(add_##L) \
  extern "C" __global__ void __launch_bounds__(256) scale_##L(T* x, u32 x_stride, const float* factors, u32 rows, u32 width) { scale(x, x_stride, factors, rows, width); } PLAYED(scale_##L) \
  extern "C" __global__ void __launch_bounds__(256) gather_##L(const T* from, u32 from_stride, const u32* list, T* to, u32 to_stride, u32 count, u32 width) { gather(from, from_stride, list, to, to_stride, count, width); } PLAYED(gather_##L) \
  extern "C" __global__ void __launch_bounds__(256) mean_##L(const T* from, u32 from_stride, const u32* first_run, const u32* runs, float* to, u32 to_stride, u32 sequences, u32 width) { mean(from, from_stride, first_run, runs, to, to_stride, sequences, width); } PLAYED(mean_##L) \
  extern "C" __global__ void __launch_bounds__(256) neighbours_##L(const T* from, u32 from_stride, u32 column, u32 columns, u32 kernel, const u32* bounds, const u32* which, u32 start, T* to, u32 to_stride, u32 rows) { neighbours(from, from_stride, column, columns, kernel, bounds, which, start, to, to_stride, rows); } PLAYED(neighbours_##L)
ROWS(f, float)
ROWS(b, bf16)
ROWS(h, f16)

#define CONVERT(L, A, B) \
  extern "C" __global__ void __launch_bounds__(256) convert_##L(const A* from, u32 from_stride, B* to, u32 to_stride, u32 rows, u32 width) { convert(from, from_stride, to, to_stride, rows, width); } PLAYED(convert_##L)
CONVERT(ff, float, float)
CONVERT(fb, float, bf16)
CONVERT(fh, float, f16)
CONVERT(bf, bf16, float)
CONVERT(hf, f16, float)
CONVERT(bb, bf16, bf16)
CONVERT(hh, f16, f16)
CONVERT(bh, bf16, f16)
CONVERT(hb, f16, bf16)
