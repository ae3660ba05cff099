// The slots that some tokens of a problem see, gathered into tiles of 64, and which of them each token sees.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kTile = 64;  // slots; a bit each is a word

// A bit for each of up to 64 bytes that are 0 or 1; `count` is a multiple of 8.
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

// The bits of `from` that `which` names, moved together.
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

// The numbers of the bits that are set, from `first` on; returns how many. Up to 15 numbers behind the last are written, too.
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

  // Which slots of a tile a token sees, a bit a slot.
  uint64_t by(int64_t token, int64_t tile) const { return words_[token * each_ + tile]; }

  // From a mask [tokens, N] of bytes; nobody sees the slot `fill`, a multiple of 8, or one behind it.
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
    // What stands behind the last slot is read, and given no weight.
    std::fill(slots_.begin() + count, slots_.begin() + tiles * kTile, count ? slots_[count - 1] : 0);
  }

 private:
  int64_t each_;  // words of a token
  std::vector<int32_t> slots_;
  std::vector<uint64_t> words_;
};

}  // namespace
