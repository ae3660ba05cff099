// Vectors of 16 numbers, and the operations on them that attention needs.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;  // numbers of a vector, and slots of a group

// The instructions that the compiler uses for vectors.
#if defined(__AVX512F__)
constexpr const char* kVectors = "AVX-512";
#elif defined(__AVX2__)
constexpr const char* kVectors = "AVX2";
#else
constexpr const char* kVectors = "other";
#endif

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

// a in the lanes whose bits are set, else b.
inline Lanes select(uint32_t bits, Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mask_blend_ps(static_cast<__mmask16>(bits), (__m512)b, (__m512)a);
#else
  const Words kBit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return (kBit & static_cast<int32_t>(bits)) != 0 ? a : b;
#endif
}

// exp(x) for x <= 0 (polynomial of the Cephes library, relative error about 2e-7); exp(-87) for x below -87.
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

// Folds two vectors into one: adds the lanes i and i ^ kApart, of a in the lanes i without the bit kApart, of b in the others.
// The summand that stays in its lane is blended, which is cheaper than a shuffle.
template <int kApart>
inline Lanes fold(Lanes a, Lanes b) {
  Words of_b, comes;
  for (int i = 0; i < kLanes; ++i) {
    of_b[i] = i & kApart ? -1 : 0;
    comes[i] = i & kApart ? kLanes + i - kApart : i + kApart;
  }
  return (of_b ? b : a) + __builtin_shuffle(a, b, comes);
}

// The sum of each of 16 vectors, as one vector.
inline Lanes sums(Lanes* v) {
  for (int i = 0; i < 8; ++i) v[i] = fold<8>(v[i], v[i + 8]);
  for (int i = 0; i < 4; ++i) v[i] = fold<4>(v[i], v[i + 4]);
  for (int i = 0; i < 2; ++i) v[i] = fold<2>(v[i], v[i + 2]);
  return fold<1>(v[0], v[1]);
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
