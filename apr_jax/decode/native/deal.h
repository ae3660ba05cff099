// Pieces of work dealt to the threads of XLA's own pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace {

// Calls work(next) on some threads; next() gives the number of a piece to do, or -1 when all are begun. The caller works too,
// and waits only for pieces that were begun: threads that are busy elsewhere cannot block it.
template <typename Work>
void deal(xla::ffi::ThreadPool pool, int64_t pieces, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto go = [shared, pieces, work] {
    int64_t before = 0;  // the piece that is done when the next one is asked for
    work([&] {
      if (before++) shared->done.fetch_add(1);
      const int64_t i = shared->next.fetch_add(1);
      return i < pieces ? i : -1;
    });
  };
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  for (int64_t i = 0; i < std::min(threads, pieces) - 1; ++i) pool.Schedule([go] { go(); });
  go();
  while (shared->done.load(std::memory_order_acquire) < pieces) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

}  // namespace
