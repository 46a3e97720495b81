// Attention on tensor cores: 64 queries x 64 keys a step, four warps of sixteen queries each, softmax as the keys go by.
// Compiled for a NUMBER (LETTER), heads of up to SIZE columns, and with or without EXTRAS: what distance adds, and a cap.
//
// Shared: the keys' tile and the values' tile, [64, SIZE] each, in 16-byte chunks whose places are turned by their row so that
// eight rows of a column are in different banks. The next keys come while the values are multiplied, the next values while the
// keys are. Each thread copies, waits for its own copies, and meets the others at a barrier before anybody reads.

#ifndef EXTRAS
#define EXTRAS 0
#endif

INLINE void mma(float* c, const u32* a, u32 b0, u32 b1, bf16) { mma_bf16(c, a, b0, b1); }
INLINE void mma(float* c, const u32* a, u32 b0, u32 b1, f16) { mma_f16(c, a, b0, b1); }
// Where a chunk of a row is. Rows of an odd number of half lines meet in the same bank every second row, so they turn half as fast.
template <int D> INLINE u32 chunk_at(u32 row, u32 chunk) { return (row * (D / 8) + (chunk ^ (D % 64 == 0 ? row & 7 : (row >> 1) & 3))) << 4; }
// Rows of the keys in work, for what distance adds.
INLINE u32* key_rows() { __shared__ u32 rows[KEYS]; return rows; }

// Copies 64 rows of a head; rows from `count` on and columns from `head_dim` on are zeros. `row_of` is asked in rising order.
template <int D, class T, class F> INLINE void load_tile(u32 to, const T* from, u32 stride, u32 head_dim, u32 count, F row_of) {
  constexpr u32 CHUNKS = D / 8;
  #pragma unroll
  for (u32 i = threadIdx.x; i < 64 * CHUNKS; i += 128) {
    const u32 row = i / CHUNKS, chunk = i % CHUNKS;
    const bool is_there = row < count && chunk * 8 < head_dim;
    copy_async(to + chunk_at<D>(row, chunk), from + (is_there ? (u64)row_of(row) * stride + chunk * 8 : 0), is_there ? 16 : 0);
  }
}
// A tile of keys or values that begins at `first`; mostly it lies within one run.
template <int D, class T> INLINE void load_keys(u32 to, const T* from, u32 stride, u32 head_dim, Path& path, u32 first, u32 end) {
  path.go_to(first);
  const u32 count = end - first;
  if (path.next - first >= least(KEYS, count)) {
    const u32 row = path.at(first);
    load_tile<D>(to, from, stride, head_dim, count, [row](u32 i) { return row + i; });
  } else {
    Path here = path;
    load_tile<D>(to, from, stride, head_dim, count, [&here, first](u32 i) { return here.at(first + i); });
  }
}

template <int D, class T> INLINE void attend(GIVEN(T)) {
  constexpr bool HELD = D <= 128; // the queries are in registers; of wider heads they stay in shared memory, behind the rest
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = first_head + blockIdx.y;
  const Tile tile(tiles);
  const Sight sight(causal, window, tile.end);
  q += (u64)head * head_dim; out += (u64)head * head_dim; k += (u64)(head / group) * head_dim; v += (u64)(head / group) * head_dim;
  const u32 keys_at = shared_address(shared_memory()), values_at = keys_at + 64 * D * 2, queries_at = HELD ? values_at : values_at + 64 * D * 2;
  const u32 last_query = tile.position + tile.queries - 1, end = sight.end_of_keys(last_query);
  u32 first = sight.first_key(tile.position) / KEYS * KEYS;
  Path path_of_keys(runs, tile), path_of_values = path_of_keys;

  load_tile<D>(queries_at, q, q_stride, head_dim, tile.queries, [&](u32 i) { return tile.place + i; });
  commit_copies();
  load_keys<D>(keys_at, k, k_stride, head_dim, path_of_keys, first, tile.end);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  u32 held[HELD ? D / 16 : 1][4];
  const auto query_part = [&](u32 i, u32* to) { load_matrices(to, queries_at + chunk_at<D>(warp * 16 + (lane & 15), i * 2 + (lane >> 4))); };
  if constexpr (HELD) {
    #pragma unroll
    for (int i = 0; i < D / 16; i++) query_part(i, held[i]);
    __syncthreads(); // the values come where the queries are
  }
  load_keys<D>(values_at, v, v_stride, head_dim, path_of_values, first, tile.end);
  commit_copies();

  // A lane has two rows of its warp, eight apart, and of each two columns of every eight.
  const u32 query = warp * 16 + (lane >> 2), i0 = tile.position + query, i1 = i0 + 8;
  const u32 first_of_warp = tile.position + warp * 16, last_of_warp = first_of_warp + 15;
  float sums[D / 8][4] = {}, most[2] = {-INFINITE, -INFINITE}, total[2] = {};
  const float to_log2 = EXTRAS ? LOG2_E : scale * LOG2_E;
#if EXTRAS
  const Scores scores = SCORES;
  Path path_of_rows = path_of_keys;
#endif
  for (; first < end; first += KEYS) {
    const bool is_last = first + KEYS >= end;
    wait_for_copies<1>();
    __syncthreads(); // the keys are there
    float s[8][4] = {};
    #pragma unroll
    for (int part = 0; part < D / 16; part++) {
      u32 again[4];
      if constexpr (!HELD) query_part(part, again);
      const u32* a = HELD ? held[HELD ? part : 0] : again;
      #pragma unroll
      for (int n = 0; n < 4; n++) {
        u32 b[4];
        load_matrices(b, keys_at + chunk_at<D>(n * 16 + (lane >> 4) * 8 + (lane & 7), part * 2 + ((lane >> 3) & 1)));
        mma(s[2 * n], a, b[0], b[1], T{});
        mma(s[2 * n + 1], a, b[2], b[3], T{});
      }
    }
#if EXTRAS
    if (threadIdx.x < KEYS) key_rows()[threadIdx.x] = first + threadIdx.x < tile.end ? path_of_rows.at(first + threadIdx.x) : 0;
#endif
    __syncthreads(); // the keys have been read
    if (!is_last) load_keys<D>(keys_at, k, k_stride, head_dim, path_of_keys, first + KEYS, tile.end);
    commit_copies();
#if EXTRAS
    // Through memory, so that this is not unrolled: it would be most of the kernel.
    float scored[8][4];
    #pragma unroll
    for (int n = 0; n < 8; n++)
      #pragma unroll
      for (int c = 0; c < 4; c++) scored[n][c] = s[n][c];
    #pragma unroll 1
    for (int n = 0; n < 8; n++)
      #pragma unroll
      for (int c = 0; c < 4; c++) {
        const u32 key = n * 8 + (lane & 3) * 2 + (c & 1), row = query + c / 2 * 8, i = tile.position + row, j = first + key;
        scored[n][c] = row < tile.queries && sight.sees(i, j) ? scores.score(scored[n][c], i, j, (u64)tile.place + row, key_rows()[key]) : -INFINITE;
      }
    #pragma unroll
    for (int n = 0; n < 8; n++)
      #pragma unroll
      for (int c = 0; c < 4; c++) s[n][c] = scored[n][c];
#else
    if (first + KEYS > tile.end || (causal && first + KEYS > first_of_warp) || (sight.window && (last_of_warp + 1 > first + sight.window || first + KEYS > first_of_warp + sight.window))) {
      #pragma unroll
      for (int n = 0; n < 8; n++)
        #pragma unroll
        for (int c = 0; c < 4; c++) if (!sight.sees(c < 2 ? i0 : i1, first + n * 8 + (lane & 3) * 2 + (c & 1))) s[n][c] = -INFINITE;
    }
#endif
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      float now = most[r], sum = 0.f;
      #pragma unroll
      for (int n = 0; n < 8; n++) now = fmaxf(now, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
      now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
      const float base = now == -INFINITE ? 0.f : now * to_log2; // nothing seen yet: all weights are 0
      const float fade = ex2(most[r] * to_log2 - base);
      most[r] = now;
      #pragma unroll
      for (int n = 0; n < 8; n++) {
        s[n][2 * r] = ex2(s[n][2 * r] * to_log2 - base);
        s[n][2 * r + 1] = ex2(s[n][2 * r + 1] * to_log2 - base);
        sum += s[n][2 * r] + s[n][2 * r + 1];
      }
      total[r] = total[r] * fade + sum;
      #pragma unroll
      for (int n = 0; n < D / 8; n++) { sums[n][2 * r] *= fade; sums[n][2 * r + 1] *= fade; }
    }
    wait_for_copies<1>();
    __syncthreads(); // the values are there
    #pragma unroll
    for (int part = 0; part < 4; part++) {
      const u32 weights[4] = {pack(s[2 * part][0], s[2 * part][1], T{}), pack(s[2 * part][2], s[2 * part][3], T{}), pack(s[2 * part + 1][0], s[2 * part + 1][1], T{}), pack(s[2 * part + 1][2], s[2 * part + 1][3], T{})};
      #pragma unroll
      for (int n = 0; n < D / 16; n++) {
        u32 b[4];
        load_turned(b, values_at + chunk_at<D>(part * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), n * 2 + (lane >> 4)));
        mma(sums[2 * n], weights, b[0], b[1], T{});
        mma(sums[2 * n + 1], weights, b[2], b[3], T{});
      }
    }
    __syncthreads(); // the values have been read
    if (!is_last) load_keys<D>(values_at, v, v_stride, head_dim, path_of_values, first + KEYS, tile.end);
    commit_copies();
  }
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    float sum = total[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float factor = 1.f / sum;
    if (query + r * 8 >= tile.queries) continue;
    T* to = out + ((u64)tile.place + query + r * 8) * out_stride;
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
      if ((u32)n * 8 < head_dim) *(u32*)(to + n * 8 + (lane & 3) * 2) = pack(sums[n][2 * r] * factor, sums[n][2 * r + 1] * factor, T{});
  }
}

#define JOINED_(A, B, C, D) A##_##B##_##C##D
#define JOINED(A, B, C, D) JOINED_(A, B, C, D)
#if EXTRAS
#define NAME JOINED(attend, LETTER, SIZE, x)
#else
#define NAME JOINED(attend, LETTER, SIZE, )
#endif
#define PLAYED_AS(name) PLAYED(name)
extern "C" __global__ void __launch_bounds__(128) NAME(GIVEN(NUMBER)) { attend<SIZE, NUMBER>(PASSED); }
PLAYED_AS(NAME)
