// A piece of attention: a few tokens of one problem at one kv head. See attention.cc for the letters.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "pairs.h"
#include "seen.h"
#include "tiles.h"

namespace {

constexpr int kGroups = kTile / kLanes;
constexpr int kBlock = 4;           // rows of a token that share loaded keys and values
constexpr int kKeys = kLanes / kBlock;
constexpr float kNothing = -1e30f;  // score of slots that are not seen
constexpr float kLog2E = 1.44269504f;

template <typename T>
struct Job {
  int64_t X, Y, H, P, N, K, h;
  int64_t fill;             // no token sees a slot from `fill` on; a multiple of 8
  int64_t tokens;           // tokens of a piece
  const T *q, *keys, *values;
  const int32_t* problem;   // [X]; P for an idle one
  const uint8_t* mask;      // [X, Y, N]
  T* out;
};

// Scratch memory that a thread keeps from piece to piece, so that it is allocated once.
struct Scratch {
  Seen seen;
  std::vector<float> numbers;
  std::vector<bf16> halves;
};

enum class Kind { kVectors, kPairs, kTiles };

template <typename T, int kSize, Kind kKind>
class Piece {
 public:
  Piece(const Job<T>& job, int64_t x, int64_t kv, int64_t first, int64_t end, Scratch& scratch)
      : h_(kSize ? kSize : job.h), width_(job.K * h_), heads_(job.H / job.K), tokens_(end - first),
        rows_(kKind == Kind::kTiles ? round(heads_, kBlock) : heads_),
        all_(kKind == Kind::kTiles ? round(tokens_ * rows_, kLanes) : tokens_ * rows_),
        scale_((kKind == Kind::kVectors ? 1.0f : kLog2E) / std::sqrt(static_cast<float>(h_))), seen_(scratch.seen) {
    asked_ = job.q + ((x * job.Y + first) * job.H + kv * heads_) * h_;
    stride_ = job.H * h_;
    const int64_t start = job.problem[x] * job.N * width_ + kv * h_;
    keys_ = job.keys + start;
    values_ = job.values + start;
    scratch.seen.list(job.mask + (x * job.Y + first) * job.N, tokens_, job.N, job.fill);
    scratch.numbers.resize(all_ * (2 * h_ + kTile + 1 + kLanes) + kTile * std::max<int64_t>(h_, kLanes));
    q_ = scratch.numbers.data();
    out_ = q_ + all_ * h_;
    weight_ = out_ + all_ * h_;
    tile_ = weight_ + all_ * kTile;
    top_ = tile_ + kTile * std::max<int64_t>(h_, kLanes);
    total_ = top_ + all_;
    std::fill(out_, out_ + all_ * h_, 0.0f);
    std::fill(top_, top_ + all_, kNothing);
    std::fill(total_, total_ + all_ * kLanes, 0.0f);
    if constexpr (kKind == Kind::kVectors)
      for (int64_t r = 0; r < all_; ++r)
        for (int64_t d = 0; d < h_; d += kLanes) store(load(query(r) + d), q_ + r * h_ + d);
    if constexpr (kKind != Kind::kVectors) prepare_halves(scratch);
    if constexpr (kKind == Kind::kTiles) pair_queries();
  }

  void run() {
    for (int64_t tile = 0; tile < seen_.tiles; ++tile) {
      const int32_t* slot = seen_.tile(tile);
      if constexpr (kKind == Kind::kTiles) {
        for (int64_t i = 0; i < kTile; ++i) std::memcpy(copied_ + i * h_, keys_ + slot[i] * width_, h_ * sizeof(bf16));
        fetch_values(slot, 0, kTile);
        if (tile + 1 < seen_.tiles) {
          ask(keys_, slot + kTile, kTile);
          ask(values_, slot + kTile, kTile);
        }
        for (int64_t r = 0; r < all_; r += kLanes) block(r, tile);
      } else if constexpr (kKind == Kind::kPairs) {
        const int shared = groups_of_several(tile);
        for (int64_t i = 0; i < kGroups; ++i) {
          turn([&](int64_t j) { return keys_ + slot[i * kLanes + j] * width_; }, h_, copied_ + i * kLanes * h_);
          if (shared >> i & 1) fetch_values(slot, i * kLanes, (i + 1) * kLanes);
        }
        each(tile, [&](auto count, int64_t r, uint64_t sees, const int32_t* next, int64_t some) {
          ask(keys_, next, some);
          score_pairs<count.value>(r, sees);
          ask(values_, next, some);
          gather<count.value>(r, sees, shared, slot);
        });
      } else {
        fetch(keys_, slot);
        each(tile, [&](auto count, int64_t r, uint64_t sees, const int32_t* next, int64_t some) {
          ask(keys_, next, some);
          score<count.value>(r, sees);
        });
        fetch(values_, slot);
        each(tile, [&](auto count, int64_t r, uint64_t sees, const int32_t* next, int64_t some) {
          ask(values_, next, some);
          gather<count.value>(r, sees, -1, slot);
        });
      }
    }
  }

  void finish(const Job<T>& job) {
    for (int64_t r = 0; r < tokens_ * rows_; ++r) {
      if (r % rows_ >= heads_) continue;
      T* to = job.out + (query(r) - job.q);
      const float total = sum(load(total_ + r * kLanes)), inverse = total > 0 ? 1.0f / total : 0.0f;
      for (int64_t d = 0; d < h_; d += kLanes) store(load(out_ + r * h_ + d) * inverse, to + d);
    }
  }

 private:
  static int64_t round(int64_t number, int64_t of) { return (number + of - 1) / of * of; }

  const T* query(int64_t r) const { return asked_ + r / rows_ * stride_ + r % rows_ * h_; }

  // Prefetches the keys or the values of some slots.
  void ask(const T* from, const int32_t* slot, int64_t some) const {
    for (int64_t i = 0; i < some; ++i)
      for (int64_t d = 0; d < h_; d += 64 / sizeof(T)) __builtin_prefetch(from + slot[i] * width_ + d, 0, 2);
  }

  void fetch(const T* from, const int32_t* slot) {
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t d = 0; d < h_; d += kLanes) store(load(from + slot[i] * width_ + d), tile_ + i * h_ + d);
  }

  // Calls work(rows, first row, bits of the slots seen, slots to prefetch, their number) for blocks of at most 4 rows of every
  // token that sees a slot of the tile. Each call gets a share of the next tile's slots to prefetch: a processor has few reads
  // in flight, so that prefetching a whole tile at once would not overlap with computation.
  template <typename Work>
  void each(int64_t tile, const Work& work) {
    int64_t blocks = 0;
    for (int64_t y = 0; y < tokens_; ++y) blocks += seen_.by(y, tile) ? (rows_ + kBlock - 1) / kBlock : 0;
    const int32_t *next = seen_.tile(tile + 1), *last = tile + 1 < seen_.tiles ? next + kTile : next;
    const int64_t share = (kTile + blocks - 1) / blocks;
    for (int64_t y = 0; y < tokens_; ++y) {
      const uint64_t own = seen_.by(y, tile);
      if (own == 0) continue;
      for (int64_t r = y * rows_, end = r + rows_; r < end; r += kBlock) {
        const int64_t some = std::min<int64_t>(share, last - next);
        if (end - r >= 4) work(std::integral_constant<int, 4>(), r, own, next, some);
        else if (end - r == 3) work(std::integral_constant<int, 3>(), r, own, next, some);
        else if (end - r == 2) work(std::integral_constant<int, 2>(), r, own, next, some);
        else work(std::integral_constant<int, 1>(), r, own, next, some);
        next += some;
      }
    }
  }

  static bool group(uint64_t sees, int64_t i) { return sees >> i * kLanes & 0xffff; }

  // The groups of a tile, one bit each, that more than one token sees. Values of other groups are interleaved when they are used.
  int groups_of_several(int64_t tile) const {
    int some = 0, several = 0;
    for (int64_t y = 0; y < tokens_; ++y) {
      const uint64_t own = seen_.by(y, tile);
      int groups = 0;
      for (int64_t i = 0; i < kGroups; ++i) groups |= group(own, i) << i;
      several |= some & groups;
      some |= groups;
    }
    return several;
  }

  template <int kCount>
  void score(int64_t first, uint64_t sees) {
    float* weight = weight_ + first * kTile;
    for (int64_t n = 0; n < kTile; n += kKeys) {
      if (!group(sees, n / kLanes)) continue;
      Lanes part[kLanes] = {};  // part[4 q + j]: row q and key j
      for (int64_t d = 0; d < h_; d += kLanes)
        for (int64_t j = 0; j < kKeys; ++j) {
          const Lanes key = load(tile_ + (n + j) * h_ + d);
          for (int q = 0; q < kCount; ++q) part[q * kKeys + j] += load(q_ + (first + q) * h_ + d) * key;
        }
      float scores[kLanes];
      store(sums(part), scores);
      for (int q = 0; q < kCount; ++q) std::memcpy(weight + q * kTile + n, scores + q * kKeys, kKeys * sizeof(float));
    }
    for (int q = 0; q < kCount; ++q) soften(first + q, sees, weight + q * kTile);
  }

  // The exponential of a difference of scores; scores are in units of log 2 if weights are rounded to bfloat16.
  static Lanes power(Lanes x) {
    if constexpr (kKind == Kind::kVectors) return exponential(x);
    else return power_of_two(x);
  }

  // Turns the scores of a row into weights and adds these to the row's total; rescales its sum of values to the new maximum.
  template <typename To>
  void soften(int64_t r, uint64_t sees, To* to) {
    const float* score = weight_ + r * kTile;
    Lanes value[kGroups], best = all(top_[r]);
    for (int64_t i = 0; i < kGroups; ++i) {
      value[i] = select(sees >> i * kLanes & 0xffff, load(score + i * kLanes) * scale_, all(kNothing));
      best = value[i] > best ? value[i] : best;
    }
    const float now = largest(best);
    Lanes added = load(total_ + r * kLanes);
    if (now > top_[r]) {
      const Lanes shrink = power(all(top_[r] - now));
      added *= shrink;
      for (int64_t d = 0; d < h_; d += kLanes) store(load(out_ + r * h_ + d) * shrink, out_ + r * h_ + d);
      top_[r] = now;
    }
    for (int64_t i = 0; i < kGroups; ++i) {
      Lanes one = {};
      if (group(sees, i)) one = select(sees >> i * kLanes & 0xffff, power(value[i] - now), one);
      added += one;
      store(one, to + i * kLanes);
    }
    store(added, total_ + r * kLanes);
  }

  // The same scores as `score`, computed with pairs.
  template <int kCount>
  void score_pairs(int64_t first, uint64_t sees) {
    for (int64_t i = 0; i < kGroups; ++i) {
      if (!group(sees, i)) continue;
      Lanes part[kCount][4] = {};  // part[q][g]: partial sums of row q and four keys, in four lanes each
      const bf16* keys = copied_ + i * kLanes * h_;
      for (int64_t d = 0; d < h_; d += 2 * kLanes, keys += 2 * kLanes * kLanes)
        add_scores<0>(part, query(first) + d, keys);
      for (int q = 0; q < kCount; ++q) {
        const Lanes(&p)[4] = part[q];
        store(fold<4>(fold<8>(p[0], p[2]), fold<8>(p[1], p[3])), weight_ + (first + q) * kTile + i * kLanes);
      }
    }
    for (int q = 0; q < kCount; ++q) soften(first + q, sees, rounded_ + (first + q) * kTile);
  }

  // Adds products of 32 numbers of some queries with the vectors c to 3 of each group of four turned keys.
  template <int c, int kCount>
  void add_scores(Lanes (&part)[kCount][4], const T* queries, const bf16* keys) const {
    for (int g = 0; g < 4; ++g) {
      const Sixteen key = sixteen(keys + (4 * g + c) * 2 * kLanes);
      for (int q = 0; q < kCount; ++q) part[q][g] = pair(part[q][g], spread<c>(sixteen(queries + q * h_)), key);
    }
    if constexpr (c < 3) add_scores<c + 1>(part, queries, keys);
  }

  // Adds weights times values of slot j of the tile (with pairs: of slots j and j + 1) to vector d of the sums of each row.
  template <int kCount, int kMost>
  void add(Lanes (&held)[kCount][kMost], int64_t d, int64_t r, int64_t j, int64_t column) const {
    if constexpr (kKind == Kind::kPairs) {
      const bf16 *weight = rounded_ + r * kTile + j, *value = interleaved_ + j * h_ + 2 * column;
      for (int q = 0; q < kCount; ++q) held[q][d] = pair(held[q][d], alike(weight + q * kTile), sixteen(value));
    } else {
      const float* weight = weight_ + r * kTile + j;
      const Lanes value = load(tile_ + j * h_ + column);
      for (int q = 0; q < kCount; ++q) held[q][d] += weight[q * kTile] * value;
    }
  }

  // Adds a tile's values to the sums of some rows; `fetched`: bits of the groups that are in scratch memory (with pairs: those that
  // `fetch_values` has interleaved).
  template <int kCount>
  void gather(int64_t r, uint64_t sees, int fetched, const int32_t* slot) {
    constexpr int kMost = 4;  // vectors of a row held in registers
    constexpr int kSlots = kKind == Kind::kPairs ? 2 : 1;  // slots of a product
    for (int64_t begin = 0; begin < h_; begin += kMost * kLanes) {
      const int64_t some = kSize ? kMost : std::min<int64_t>(kMost, (h_ - begin) / kLanes);
      float* to = out_ + r * h_ + begin;
      Lanes held[kCount][kMost];
      for (int q = 0; q < kCount; ++q)
        for (int64_t d = 0; d < some; ++d) held[q][d] = load(to + q * h_ + d * kLanes);
      for (int64_t i = 0; i < kGroups; ++i) {
        if (!group(sees, i)) continue;
        for (int64_t j = i * kLanes; j < (i + 1) * kLanes; j += kSlots) {
          if (fetched >> i & 1) {
            for (int64_t d = 0; d < some; ++d) add(held, d, r, j, begin + d * kLanes);
          } else if constexpr (kKind == Kind::kPairs) {
            const T* value = values_ + begin;
            interleave(value + slot[j] * width_, value + slot[j + 1] * width_, kMost * kLanes, [&](int64_t d, Sixteen both) {
              for (int q = 0; q < kCount; ++q) held[q][d] = pair(held[q][d], alike(rounded_ + (r + q) * kTile + j), both);
            });
          }
        }
      }
      for (int q = 0; q < kCount; ++q)
        for (int64_t d = 0; d < some; ++d) store(held[q][d], to + q * h_ + d * kLanes);
    }
  }

  void prepare_halves(Scratch& scratch) {
    scratch.halves.resize(all_ * (h_ + kTile) + 2 * kTile * h_);
    paired_ = scratch.halves.data();
    rounded_ = paired_ + all_ * h_;
    copied_ = rounded_ + all_ * kTile;
    interleaved_ = copied_ + kTile * h_;
  }

  // Stores the queries in pairs, in blocks of 16 rows: [block, h / 2, row, 2].
  void pair_queries() {
    std::fill(paired_, paired_ + all_ * (h_ + kTile), bf16{0});
    for (int64_t r = 0; r < tokens_ * rows_; ++r) {
      if (r % rows_ >= heads_) continue;
      bf16* to = paired_ + r / kLanes * kLanes * h_ + r % kLanes * 2;
      for (int64_t d = 0; d < h_; d += 2) std::memcpy(to + d * kLanes, query(r) + d, 2 * sizeof(bf16));
    }
  }

  void fetch_values(const int32_t* slot, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i += 2)
      interleave(values_ + slot[i] * width_, values_ + slot[i + 1] * width_, h_, [&](int64_t d, Sixteen both) {
        std::memcpy(interleaved_ + i * h_ + 2 * kLanes * d, &both, sizeof(both));
      });
  }

  // Attention of 16 rows, of one or several tokens, over a tile.
  void block(int64_t first, int64_t tile) {
    const int64_t from = first / rows_, to = std::min((first + kLanes - 1) / rows_ + 1, tokens_);
    uint64_t any = 0;
    for (int64_t y = from; y < to; ++y) any |= seen_.by(y, tile);
    if (any == 0) return;
    int groups = 0;
    for (int i = 0; i < kGroups; ++i) groups |= group(any, i) << i;
    multiply_keys(copied_, paired_ + first * h_, h_, groups, tile_);
    for (int64_t r = first; r < first + kLanes; r += kBlock) {
      const uint64_t own = r < tokens_ * rows_ ? seen_.by(r / rows_, tile) : 0;
      if (own == 0) {
        std::fill(rounded_ + r * kTile, rounded_ + (r + kBlock) * kTile, bf16{0});
        continue;
      }
      for (int i = 0; i < kGroups; ++i)
        if (group(own, i)) transpose(tile_ + i * kLanes * kLanes + r - first, weight_ + r * kTile + i * kLanes);
      const int64_t real = std::min<int64_t>(kBlock, heads_ - r % rows_);
      for (int64_t q = r; q < r + real; ++q) soften(q, own, rounded_ + q * kTile);
    }
    add_values(rounded_ + first * kTile, interleaved_, h_, out_ + first * h_);
  }

  const int64_t h_, width_, heads_, tokens_;
  const int64_t rows_, all_;  // rows of a token, and of the piece; with tiles both include padding
  const float scale_;
  const Seen& seen_;
  const T* asked_;   // the first query
  int64_t stride_;   // distance from the queries of a token to those of the next
  const T *keys_, *values_;
  float *q_, *out_, *weight_, *tile_, *top_, *total_;
  bf16 *paired_, *rounded_, *copied_, *interleaved_;
};

}  // namespace
