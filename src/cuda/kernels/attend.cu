// What both kinds of attention know: tiles of queries, where keys are, who sees whom, what distance adds; and the plain kind, in f32
// without tensor cores, for any head of up to 256 columns.
//
// Keys are taken by position, in tiles of 64 that begin at multiples of 64, in rising order; a tile that a query sees nothing of
// changes nothing of it. So a query's bits depend neither on where its row stands nor on which other queries are in its tile.

#define KEYS 64u
#define QUERIES 64u
#define INFINITE __int_as_float(0x7f800000)
#define LOG2_E 1.4426950408889634f

#define BY_BUCKET 1u
#define BY_ROUNDED_SLOPE 2u
#define BY_BIAS 3u
#define BY_SLOPE 4u

// What all kernels of attention are given, in this order.
#define GIVEN(T) \
  const T* q, u32 q_stride, const T* k, u32 k_stride, const T* v, u32 v_stride, T* out, u32 out_stride, const u32* tiles, const u32* runs, u32 group, u32 head_dim, float scale, \
  u32 causal, u32 window, float softcap, u32 first_head, u32 distance, const float* slopes, const u32* of_distance, u32 reach, u32 buckets, const float* biases, const float* of_queries, const float* of_keys
#define PASSED \
  q, q_stride, k, k_stride, v, v_stride, out, out_stride, tiles, runs, group, head_dim, scale, causal, window, softcap, first_head, distance, slopes, of_distance, reach, buckets, biases, of_queries, of_keys

// A tile of queries, as the host says it.
struct Tile {
  u32 place, queries, position, first_run, run_count, end;
  INLINE_MEMBER Tile(const u32* tiles) {
    const u32* tile = tiles + 6 * (u64)blockIdx.x;
    place = tile[0]; queries = tile[1]; position = tile[2]; first_run = tile[3]; run_count = tile[4]; end = tile[5];
  }
};

// Rows of a path's keys, asked for in rising order.
struct Path {
  const u32* runs;
  u32 left, first, next, row; // runs behind this one; its first position, the next one's, and its first row
  INLINE_MEMBER Path(const u32* of_all, const Tile& tile) : runs(of_all + 2 * (u64)tile.first_run), left(tile.run_count - 1) { read(); }
  INLINE_MEMBER void read() { first = runs[0]; row = runs[1]; next = left ? runs[2] : ~0u; }
  INLINE_MEMBER void go_to(u32 position) { while (position >= next) { runs += 2; left--; read(); } }
  INLINE_MEMBER u32 at(u32 position) { go_to(position); return row + (position - first); }
};

struct Sight {
  u32 causal, window, end;
  INLINE_MEMBER Sight(u32 causal, u32 window, u32 end) : causal(causal), window(window < end ? window : 0), end(end) {}
  INLINE_MEMBER bool sees(u32 i, u32 j) const { return j < end && (!causal || j <= i) && (!window || (i > j ? i - j : j - i) < window); }
  // The first key that the query at `i` sees, and the one behind the last.
  INLINE_MEMBER u32 first_key(u32 i) const { return window && i >= window ? i - window + 1 : 0; }
  INLINE_MEMBER u32 end_of_keys(u32 i) const { const u32 last = causal ? i + 1 : end; return least(window ? least(last, i + window) : last, end); }
  // Of the tile that begins at `first`.
  INLINE_MEMBER bool sees_any(u32 i, u32 first) const { return first_key(i) < first + KEYS && end_of_keys(i) > first; }
};

// A score from a product, with what distance adds and the cap.
struct Scores {
  u32 distance, head, place_stride, reach, buckets;
  float scale, softcap;
  const float *slopes, *biases, *of_queries, *of_keys;
  const u32* of_distance;
  INLINE_MEMBER float rounded(float slope, u32 position) const { return rounded_to_bf16(rounded_to_bf16(slope) * rounded_to_bf16((float)position)); }
  INLINE_MEMBER u32 bucket(u32 i, u32 j) const { return of_distance[i >= j ? least(i - j, reach) + reach : reach - least(j - i, reach)]; }
  // `place` and `row` are the query's and the key's.
  INLINE_MEMBER float score(float product, u32 i, u32 j, u64 place, u64 row) const {
    if (distance == BY_BUCKET) {
      const u32 b = bucket(i, j);
      if (of_queries) product += of_queries[(place * place_stride + blockIdx.y) * buckets + b];
      if (of_keys) product += of_keys[(row * place_stride + blockIdx.y) * buckets + b];
    } else if (distance == BY_ROUNDED_SLOPE) {
      product += rounded(slopes[head], j) - rounded(slopes[head], i);
    }
    float score = product * scale;
    if (distance == BY_BIAS) score += biases[(u64)bucket(i, j) * buckets + head];
    else if (distance == BY_SLOPE) score += slopes[head] * ((float)j - (float)i);
    return softcap != 0.f ? softcap * tanhf(score / softcap) : score;
  }
};
#define SCORES Scores{distance, first_head + blockIdx.y, gridDim.y, reach, buckets, scale, softcap, slopes, biases, of_queries, of_keys, of_distance}

#ifdef PLAIN
// Sixteen queries at a time, four to a warp. A lane has two of the keys, then each thirty-second column of the values.
// Shared: a tile of keys or values [64, head_dim | 1], queries [16, head_dim], weights [16, 64], rows of the keys [64].
template <class T> INLINE void attend(GIVEN(T)) {
  constexpr u32 AT_ONCE = 16, EACH = 4, COLUMNS = 8;
  const u32 pitch = head_dim | 1; // odd: lanes that read a column of it are in different banks
  float* tile_of = (float*)shared_memory();
  float* queries_of = tile_of + KEYS * pitch;
  float* weights = queries_of + AT_ONCE * head_dim;
  u32* rows = (u32*)(weights + AT_ONCE * KEYS);
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = first_head + blockIdx.y;
  const Tile tile(tiles);
  const Sight sight(causal, window, tile.end);
  const Scores scores = SCORES;
  q += (u64)head * head_dim; out += (u64)head * head_dim; k += (u64)(head / group) * head_dim; v += (u64)(head / group) * head_dim;
  const auto load_tile = [&](const T* from, u32 stride, u32 first) {
    for (u32 i = threadIdx.x; i < KEYS * head_dim; i += blockDim.x) {
      const u32 key = i / head_dim, column = i % head_dim;
      tile_of[key * pitch + column] = first + key < tile.end ? to_float(from[(u64)rows[key] * stride + column]) : 0.f;
    }
  };
  for (u32 first_query = 0; first_query < tile.queries; first_query += AT_ONCE) {
    const u32 count = least(AT_ONCE, tile.queries - first_query), position = tile.position + first_query;
    __syncthreads(); // the queries before have been read
    for (u32 i = threadIdx.x; i < AT_ONCE * head_dim; i += blockDim.x) queries_of[i] = i / head_dim < count ? to_float(q[((u64)tile.place + first_query + i / head_dim) * q_stride + i % head_dim]) : 0.f;
    float sums[EACH][COLUMNS] = {}, most[EACH], total[EACH] = {};
    #pragma unroll
    for (u32 n = 0; n < EACH; n++) most[n] = -INFINITE;
    Path path(runs, tile);
    const u32 end = sight.end_of_keys(position + count - 1);
    for (u32 first = sight.first_key(position) / KEYS * KEYS; first < end; first += KEYS) {
      __syncthreads(); // the values before have been read
      if (threadIdx.x < KEYS) rows[threadIdx.x] = first + threadIdx.x < tile.end ? path.at(first + threadIdx.x) : 0;
      __syncthreads();
      load_tile(k, k_stride, first);
      __syncthreads();
      float s[EACH][2] = {};
      for (u32 column = 0; column < head_dim; column++) {
        const float a = tile_of[lane * pitch + column], b = tile_of[(lane + 32) * pitch + column];
        #pragma unroll
        for (u32 n = 0; n < EACH; n++) {
          const float query = queries_of[(warp * EACH + n) * head_dim + column];
          s[n][0] += query * a;
          s[n][1] += query * b;
        }
      }
      __syncthreads(); // the keys have been read
      load_tile(v, v_stride, first);
      float* mine = weights + warp * EACH * KEYS + lane; // a lane's own, until the next barrier
      #pragma unroll
      for (u32 n = 0; n < EACH; n++) { mine[n * KEYS] = s[n][0]; mine[n * KEYS + 32] = s[n][1]; }
      #pragma unroll 1
      for (u32 n = 0; n < EACH * 2; n++) {
        const u32 query = warp * EACH + n / 2, key = lane + n % 2 * 32, i = position + query, j = first + key;
        float& score = mine[n * 32];
        score = query < count && sight.sees(i, j) ? scores.score(score, i, j, (u64)tile.place + first_query + query, rows[key]) : -INFINITE;
      }
      #pragma unroll
      for (u32 n = 0; n < EACH; n++) {
        const u32 i = position + warp * EACH + n;
        if (warp * EACH + n >= count || !sight.sees_any(i, first)) continue; // all lanes alike
        float &a = mine[n * KEYS], &b = mine[n * KEYS + 32];
        const float now = fmaxf(most[n], warp_max(fmaxf(a, b))), fade = expf(most[n] - now);
        a = expf(a - now);
        b = expf(b - now);
        most[n] = now;
        total[n] = total[n] * fade + lanes_sum<32>(a + b);
        #pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) sums[n][c] *= fade;
      }
      __syncthreads();
      #pragma unroll
      for (u32 n = 0; n < EACH; n++) {
        const u32 i = position + warp * EACH + n;
        if (warp * EACH + n >= count || !sight.sees_any(i, first)) continue;
        for (u32 key = 0; key < KEYS; key++) {
          const float weight = weights[(warp * EACH + n) * KEYS + key];
          #pragma unroll
          for (u32 c = 0; c < COLUMNS; c++) if (lane + 32 * c < head_dim) sums[n][c] += weight * tile_of[key * pitch + lane + 32 * c];
        }
      }
    }
    #pragma unroll
    for (u32 n = 0; n < EACH; n++) {
      if (warp * EACH + n >= count) continue;
      T* to = out + ((u64)tile.place + first_query + warp * EACH + n) * out_stride;
      #pragma unroll
      for (u32 c = 0; c < COLUMNS; c++) if (lane + 32 * c < head_dim) round_to(sums[n][c] / total[n], to[lane + 32 * c]);
    }
  }
}

#define ATTEND(L, T) \
  extern "C" __global__ void __launch_bounds__(128) attend_##L(GIVEN(T)) { attend<T>(PASSED); } PLAYED(attend_##L)
ATTEND(f, float)
ATTEND(b, bf16)
ATTEND(h, f16)
#endif
