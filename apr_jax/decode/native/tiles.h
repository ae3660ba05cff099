// Products of bfloat16 tiles on processors with AMX: 16 rows of 32 numbers times 32 rows of 16, in f32.
//
// The right factor is stored in pairs: two rows of numbers interleaved into one. Attention multiplies plain keys by queries in
// pairs, and plain weights by values in pairs: so the keys of a tile are only copied, and its values are interleaved once for
// all queries. A row of a tile register has 64 bytes.

#pragma once

#include "pairs.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr bool kHasTiles = true;

// Linux lets a process use the tile registers only on request.
inline bool tiles_allowed() {
  constexpr long kAsk = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return allowed;
}

// During its lifetime, if `wanted`, the thread's eight tile registers have 16 rows of 64 bytes.
struct Tiles {
  explicit Tiles(bool wanted) : wanted(wanted) {
    if (!wanted) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() {
    if (wanted) _tile_release();
  }
  const bool wanted;
};

// sums [2, 32, 16] = up to 32 rows [rows, k] times two tiles of 16 columns in pairs [2, k / 2, 16]; the last tile of rows may be
// partly filled.
inline void multiply_rows(const bf16* x, const bf16* columns, int64_t rows, int64_t k, float* sums) {
  const bf16 *others = columns + kLanes * k, *below = x + kLanes * k;
#define EACH(work) work(0) work(1) work(2) work(3)
#define ZERO(i) _tile_zero(i);
#define STORE(i) _tile_stored(i, sums + i * kLanes * kLanes, 64);
  EACH(ZERO)
  for (int64_t d = 0; d < k; d += 32) {
    _tile_loadd(4, x + d, 2 * k);
    _tile_loadd(6, columns + d * kLanes, 64);
    _tile_loadd(7, others + d * kLanes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    if (rows <= kLanes) continue;
    _tile_loadd(5, below + d, 2 * k);
    _tile_dpbf16ps(1, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  EACH(STORE)
#undef STORE
#undef ZERO
#undef EACH
}

// scores[group][key][query] for the groups of 16 keys whose bits are set: keys [64, h], queries in pairs [h / 2, 16].
inline void multiply_keys(const bf16* keys, const bf16* queries, int64_t h, int groups, float* scores) {
#define GROUP(i, key, query)                                  \
  if (groups >> i & 1) {                                      \
    _tile_zero(i);                                            \
    for (int64_t d = 0; d < h; d += 32) {                     \
      _tile_loadd(key, keys + i * kLanes * h + d, 2 * h);     \
      _tile_loadd(query, queries + d * kLanes, 64);           \
      _tile_dpbf16ps(i, key, query);                          \
    }                                                         \
    _tile_stored(i, scores + i * kLanes * kLanes, 64);        \
  }
  GROUP(0, 4, 5) GROUP(1, 6, 7) GROUP(2, 4, 5) GROUP(3, 6, 7)
#undef GROUP
}

// out [16, h] += weights [16, 64] times values in pairs [32, h]; h is a multiple of 64.
inline void add_values(const bf16* weights, const bf16* values, int64_t h, float* out) {
  for (int64_t d = 0; d < h; d += 64) {
#define EACH(work) work(0, 5) work(1, 6) work(2, 5) work(3, 6)
#define LOAD(i, value) _tile_loadd(i, out + d + i * kLanes, 4 * h);
#define STORE(i, value) _tile_stored(i, out + d + i * kLanes, 4 * h);
#define ADD(i, value)                                                    \
  _tile_loadd(value, values + n * h + 2 * d + 2 * i * kLanes, 4 * h);    \
  _tile_dpbf16ps(i, 4, value);
    EACH(LOAD)
    for (int64_t n = 0; n < 64; n += 32) {
      _tile_loadd(4, weights + n, 2 * 64);
      EACH(ADD)
    }
    EACH(STORE)
#undef ADD
#undef STORE
#undef LOAD
#undef EACH
  }
}

// Transposes four columns (queries), from `scores` on, of scores [16 keys, 16 queries] into rows of 64 keys.
inline void transpose(const float* scores, float* rows) {
  __m512 x[4];  // x[k]: columns of the keys k, 4 + k, 8 + k, 12 + k
  for (int k = 0; k < 4; ++k) {
    const float* from = scores + k * kLanes;
    const __m512 one = _mm512_castps128_ps512(_mm_loadu_ps(from));
    const __m512 two = _mm512_insertf32x4(one, _mm_loadu_ps(from + 4 * kLanes), 1);
    const __m512 three = _mm512_insertf32x4(two, _mm_loadu_ps(from + 8 * kLanes), 2);
    x[k] = _mm512_insertf32x4(three, _mm_loadu_ps(from + 12 * kLanes), 3);
  }
  const __m512 a = _mm512_unpacklo_ps(x[0], x[1]), b = _mm512_unpackhi_ps(x[0], x[1]);
  const __m512 c = _mm512_unpacklo_ps(x[2], x[3]), d = _mm512_unpackhi_ps(x[2], x[3]);
  const auto halves = [](__m512 p, __m512 q, bool high) {
    const __m512d u = _mm512_castps_pd(p), v = _mm512_castps_pd(q);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(u, v) : _mm512_unpacklo_pd(u, v));
  };
  _mm512_storeu_ps(rows, halves(a, c, false));
  _mm512_storeu_ps(rows + 64, halves(a, c, true));
  _mm512_storeu_ps(rows + 128, halves(b, d, false));
  _mm512_storeu_ps(rows + 192, halves(b, d, true));
}

}  // namespace

#else

namespace {

constexpr bool kHasTiles = false;
inline bool tiles_allowed() { return false; }
struct Tiles {
  explicit Tiles(bool) {}
};
inline void multiply_rows(const bf16*, const bf16*, int64_t, int64_t, float*) {}
inline void multiply_keys(const bf16*, const bf16*, int64_t, int, float*) {}
inline void add_values(const bf16*, const bf16*, int64_t, float*) {}
inline void transpose(const float*, float*) {}

}  // namespace

#endif
