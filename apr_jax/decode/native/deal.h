// Pieces of work dealt to the threads of XLA's own pool, and errors in them told to XLA.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace {

// Calls work(next) on some threads; next() gives the number of a piece to do, or -1 when all are begun. The caller works too,
// and waits only for pieces that were begun: threads that are busy elsewhere cannot block it. What a thread throws is thrown
// to the caller once no thread works any more; pieces that nobody had begun are left undone then.
template <typename Work>
void deal(xla::ffi::ThreadPool pool, int64_t pieces, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex guard;
    std::exception_ptr error;  // the first one
  };
  auto shared = std::make_shared<Shared>();
  const auto fail = [shared, pieces] {
    {
      const std::lock_guard<std::mutex> lock(shared->guard);
      if (!shared->error) shared->error = std::current_exception();
    }
    while (shared->next.fetch_add(1) < pieces) shared->done.fetch_add(1);
  };
  auto go = [shared, pieces, work, fail] {
    bool holds = false;  // a piece, which is done when the next one is asked for
    try {
      work([&] {
        if (holds) shared->done.fetch_add(1);
        const int64_t i = shared->next.fetch_add(1);
        holds = i < pieces;
        return holds ? i : -1;
      });
    } catch (...) {
      fail();
      if (holds) shared->done.fetch_add(1);
    }
  };
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  try {
    for (int64_t i = 0; i < std::min(threads, pieces) - 1; ++i) pool.Schedule([go] { go(); });
  } catch (...) {
    fail();
  }
  go();
  while (shared->done.load(std::memory_order_acquire) < pieces) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  const std::lock_guard<std::mutex> lock(shared->guard);
  if (shared->error) std::rethrow_exception(shared->error);
}

// Does a kernel's work; what it throws becomes XLA's error, under the kernel's name.
template <typename Work>
xla::ffi::Error guarded(const std::string& name, const Work& work) {
  using xla::ffi::Error;
  try {
    work();
    return Error::Success();
  } catch (const std::bad_alloc&) {
    return Error(xla::ffi::ErrorCode::kResourceExhausted, name + ": there is no memory for its scratch space");
  } catch (const std::exception& error) {
    return Error(xla::ffi::ErrorCode::kInternal, name + ": " + error.what());
  }
}

}  // namespace
