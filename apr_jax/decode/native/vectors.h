// Vectors of 16 numbers, and what attention computes with them.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;  // numbers of a vector, and slots of a group

using Lanes = float __attribute__((vector_size(4 * kLanes), aligned(4)));
using Words = int32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Bits = uint32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes), aligned(2)));

struct bf16 {
  uint16_t bits;
};

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline Lanes load(const bf16* from) {
  return (Lanes)(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}
inline void store(Lanes x, float* to) { *reinterpret_cast<Lanes*>(to) = x; }
inline void store(Lanes x, bf16* to) {  // to nearest, ties to even; is never given NaN
#if defined(__AVX512BF16__)
  *reinterpret_cast<Halves*>(to) = (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  Bits bits = (Bits)x;
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
#endif
}
inline Lanes all(float x) { return Lanes{} + x; }

// exp of numbers up to 0 (polynomial of the Cephes library, relative error about 2e-7); below -87 it is that of -87.
inline Lanes exponential(Lanes x) {
  x = x < -87.0f ? all(-87.0f) : x;
  const Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the sum is too large to hold a fraction: this rounds
  const Lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * (Lanes)((__builtin_convertvector(n, Words) + 127) << 23);
}

// The sum of each of 16 vectors, as one vector: neighbours are folded into one, four times over.
inline Lanes sums(Lanes* v) {
#define PICK(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
  for (int i = 0; i < 8; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; ++i) {
    const Lanes a = v[2 * i], b = v[2 * i + 1];
    v[i] = PICK(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           PICK(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  return PICK(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         PICK(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#undef PICK
}

inline float sum(Lanes x) {
  float result = 0;
  for (int i = 0; i < kLanes; ++i) result += x[i];
  return result;
}

inline float largest(Lanes x) {
#define FOLD(...) { const Lanes y = __builtin_shuffle(x, Words{__VA_ARGS__}); x = y > x ? y : x; }
  FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
  FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
  FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
  FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#undef FOLD
  return x[0];
}

}  // namespace
