// Pairs of bfloat16, whose products some processors add two to a lane.

#pragma once

#include "vectors.h"

namespace {

#if defined(__AVX512BF16__)

constexpr bool kHasPairs = true;

// Adds products of one pair with each of 16 pairs.
inline Lanes pair(Lanes sum, const bf16* one, const bf16* sixteen) {
  int32_t both;
  std::memcpy(&both, one, sizeof(both));
  return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), (__m512bh)_mm512_loadu_si512(sixteen));
}

// Two rows of numbers as one of pairs.
inline void interleave(const bf16* a, const bf16* b, int64_t h, bf16* to) {
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
    _mm512_storeu_si512(to + 2 * d, _mm512_permutex2var_epi16(x, low, y));
    _mm512_storeu_si512(to + 2 * d + 32, _mm512_permutex2var_epi16(x, high, y));
  }
}

// 16 rows of h numbers, h a multiple of 32, as h / 2 rows of 16 pairs; row(i) tells where a row lies.
template <typename Row>
inline void turn(const Row& row, int64_t h, bf16* to) {
  for (int64_t d = 0; d < h; d += 32) {
    __m512i x[16], y[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(row(i) + d);
    for (int i = 0; i < 16; i += 2) {
      y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // x[i + c]: of four rows, pairs c, 4 + c, 8 + c and 12 + c
      for (int c = 0; c < 2; ++c) {
        x[i + 2 * c] = _mm512_unpacklo_epi64(y[i + c], y[i + c + 2]);
        x[i + 2 * c + 1] = _mm512_unpackhi_epi64(y[i + c], y[i + c + 2]);
      }
    }
    for (int c = 0; c < 4; ++c) {
      const auto collect = [&](__m512i a, __m512i b, int64_t pair) {
        _mm512_storeu_si512(to + (d / 2 + pair) * 2 * kLanes, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(to + (d / 2 + pair + 8) * 2 * kLanes, _mm512_shuffle_i32x4(a, b, 0xdd));
      };
      collect(_mm512_shuffle_i32x4(x[c], x[4 + c], 0x88), _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88), c);
      collect(_mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd), _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd), c + 4);
    }
  }
}

#else

constexpr bool kHasPairs = false;
inline Lanes pair(Lanes sum, const bf16*, const bf16*) { return sum; }
inline void interleave(const bf16*, const bf16*, int64_t, bf16*) {}
template <typename Row>
inline void turn(const Row&, int64_t, bf16*) {}

#endif

}  // namespace
