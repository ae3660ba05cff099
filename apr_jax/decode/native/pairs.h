// Pairs of bfloat16, for processors that add the products of a pair in one lane (AVX512-BF16).

#pragma once

#include "vectors.h"

namespace {

using Sixteen = Words;  // pairs

#if defined(__AVX512BF16__)

constexpr bool kHasPairs = true;

inline Sixteen sixteen(const bf16* from) { return (Sixteen)_mm512_loadu_si512(from); }

// One pair, repeated sixteen times.
inline Sixteen alike(const bf16* one) {
  int32_t both;
  std::memcpy(&both, one, sizeof(both));
  return (Sixteen)_mm512_set1_epi32(both);
}

// Adds products of 16 pairs with 16 pairs.
inline Lanes pair(Lanes sum, Sixteen a, Sixteen b) {
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Interleaves two rows of h numbers into one row of pairs; calls use(index of the vector, its 16 pairs).
template <typename Use>
inline void interleave(const bf16* a, const bf16* b, int64_t h, const Use& use) {
  struct Order {
    uint16_t low[32] = {}, high[32] = {};
    constexpr Order() {
      for (int i = 0; i < 32; ++i) low[i] = i / 2 + i % 2 * 32, high[i] = low[i] + 16;
    }
  };
  static constexpr Order kOrder;
  const __m512i low = _mm512_loadu_si512(kOrder.low), high = _mm512_loadu_si512(kOrder.high);
  for (int64_t d = 0; d < h; d += 32) {
    const __m512i x = _mm512_loadu_si512(a + d), y = _mm512_loadu_si512(b + d);
    use(d / kLanes, (Sixteen)_mm512_permutex2var_epi16(x, low, y));
    use(d / kLanes + 1, (Sixteen)_mm512_permutex2var_epi16(x, high, y));
  }
}

// Turns 16 rows of h numbers, h a multiple of 32, into vectors of pairs [h / 32, 4, 4]: vector [d, g, c] holds the pairs c, 4 + c,
// 8 + c and 12 + c of the d-th 32 numbers, of each of the rows 4 g to 4 g + 3. row(i) returns the address of row i.
template <typename Row>
inline void turn(const Row& row, int64_t h, bf16* to) {
  for (int64_t d = 0; d < h; d += 32)
    for (int64_t g = 0; g < kLanes; g += 4, to += 8 * kLanes) {
      __m512i x[4];
      for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_si512(row(g + i) + d);
      const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
      const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), e = _mm512_unpackhi_epi32(x[2], x[3]);
      _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, c));
      _mm512_storeu_si512(to + 2 * kLanes, _mm512_unpackhi_epi64(a, c));
      _mm512_storeu_si512(to + 4 * kLanes, _mm512_unpacklo_epi64(b, e));
      _mm512_storeu_si512(to + 6 * kLanes, _mm512_unpackhi_epi64(b, e));
    }
}

// The pairs c, 4 + c, 8 + c and 12 + c of 16 pairs, four times each: the factor of vector c of `turn`.
template <int c>
inline Sixteen spread(Sixteen x) {
  return (Sixteen)_mm512_shuffle_epi32((__m512i)x, static_cast<_MM_PERM_ENUM>(c * 0x55));
}

// 2 to the power of x <= 0, relative error 3e-6: a polynomial of the fractional part, scaled by the integer part.
inline Lanes power_of_two(Lanes x) {
  const Lanes r = (Lanes)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
  Lanes p = r * 0.0135341203f + 0.0520114787f;
  p = p * r + 0.2414428f;
  p = p * r + 0.693003833f;
  return (Lanes)_mm512_scalef_ps((__m512)(p * r + 1.00000262f), (__m512)x);
}

#else

constexpr bool kHasPairs = false;
inline Sixteen sixteen(const bf16*) { return Sixteen{}; }
inline Sixteen alike(const bf16*) { return Sixteen{}; }
inline Lanes pair(Lanes sum, Sixteen, Sixteen) { return sum; }
template <typename Use>
inline void interleave(const bf16*, const bf16*, int64_t, const Use&) {}
template <typename Row>
inline void turn(const Row&, int64_t, bf16*) {}
template <int c>
inline Sixteen spread(Sixteen x) { return x; }
inline Lanes power_of_two(Lanes x) { return x; }

#endif

}  // namespace
