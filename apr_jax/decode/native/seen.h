// The slots that any of some tokens of a problem sees, listed in tiles of 64, and the slots of a tile that each token sees.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kTile = 64;  // slots of a tile; with one bit per slot a tile is one word

// One bit for each of `count` bytes, which are 0 or 1; `count` is a multiple of 8, at most 64.
inline uint64_t bits(const uint8_t* bytes, int64_t count) {
#if defined(__AVX512BW__)
  const __m512i all = _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - count), bytes);
  return _mm512_test_epi8_mask(all, all);
#else
  uint64_t result = 0;
  for (int64_t i = 0; i < count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    result |= (word * 0x0102040810204080 >> 56) << i;
  }
  return result;
#endif
}

// The bits of `from` at the set bits of `which`, moved together to the low end.
inline uint64_t compress(uint64_t from, uint64_t which) {
#if defined(__BMI2__)
  return _pext_u64(from, which);
#else
  uint64_t result = 0;
  for (uint64_t bit = 1; which; which &= which - 1, bit <<= 1)
    if (from & which & -which) result |= bit;
  return result;
#endif
}

// Writes `first` + index of each set bit to `to`, and returns their count. Up to 15 numbers behind the last one are overwritten.
inline int64_t numbers(uint64_t bits, int32_t first, int32_t* to) {
  const int32_t* start = to;
#if defined(__AVX512F__)
  const __m512i sixteen = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; bits; bits >>= 16, first += 16) {
    const auto some = static_cast<__mmask16>(bits);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(some, _mm512_add_epi32(sixteen, _mm512_set1_epi32(first))));
    to += __builtin_popcount(some);
  }
#else
  for (; bits; bits &= bits - 1) *to++ = first + __builtin_ctzll(bits);
#endif
  return to - start;
}

struct Seen {
  int64_t tiles;

  const int32_t* tile(int64_t number) const { return slots_.data() + number * kTile; }

  // The slots of a tile that a token sees, one bit per slot.
  uint64_t by(int64_t token, int64_t tile) const { return words_[token * each_ + tile]; }

  // Lists the slots of a mask [tokens, N] of bytes; no token sees a slot >= `fill`, a multiple of 8.
  void list(const uint8_t* mask, int64_t tokens, int64_t N, int64_t fill) {
    each_ = fill / kTile + 2;
    slots_.resize(each_ * kTile);
    words_.assign(tokens * (each_ + 1), 0);
    uint64_t* now = words_.data() + tokens * each_;
    int64_t count = 0;
    for (int64_t n = 0; n < fill; n += kTile) {
      uint64_t any = 0;
      for (int64_t y = 0; y < tokens; ++y) any |= now[y] = bits(mask + y * N + n, std::min<int64_t>(kTile, fill - n));
      for (int64_t y = 0; any && y < tokens; ++y) {
        const uint64_t own = compress(now[y], any);
        uint64_t* to = words_.data() + y * each_ + count / kTile;
        to[0] |= own << count % kTile;
        if (count % kTile) to[1] |= own >> (kTile - count % kTile);
      }
      count += numbers(any, static_cast<int32_t>(n), slots_.data() + count);
    }
    tiles = (count + kTile - 1) / kTile;
    // The rest of the last tile is read too, with weight 0: it must hold valid slots.
    std::fill(slots_.begin() + count, slots_.begin() + tiles * kTile, count ? slots_[count - 1] : 0);
  }

 private:
  int64_t each_;  // words of a token
  std::vector<int32_t> slots_;
  std::vector<uint64_t> words_;
};

}  // namespace
