#include "parallel.h"

#include <unistd.h>

#include <chrono>
#include <map>

namespace radix {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), process_(getpid()) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  round_.fetch_add(1);
  round_.notify_all();
  for (auto& worker : workers_) {
    // After a fork() there is nobody to join.
    process_ == getpid() ? worker.join() : worker.detach();
  }
}

void ThreadPool::drain(uint32_t round) {
  uint64_t next = next_.load(std::memory_order_acquire);
  for (;;) {
    const auto index = static_cast<uint32_t>(next);
    if (static_cast<uint32_t>(next >> 32) != round) return;
    if (index >= num_tasks_.load(std::memory_order_relaxed)) return;
    const Task task = task_.load(std::memory_order_relaxed);
    void* context = context_.load(std::memory_order_relaxed);
    // Success proves that the round is still open, so task and context were this round's.
    if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      task(context, index);
      done_.fetch_add(1, std::memory_order_release);
      next = next_.load(std::memory_order_acquire);
    }
  }
}

void ThreadPool::run(int64_t num_tasks, Task task, void* context) {
  std::unique_lock<std::mutex> owner(caller_, std::try_to_lock);
  if (!owner || workers_.empty()) {
    for (int64_t i = 0; i < num_tasks; ++i) task(context, i);
    return;
  }
  const uint32_t round = round_.load(std::memory_order_relaxed) + 1;
  // An exhausted next_ of the last round keeps late workers out while the fields change.
  num_tasks_.store(0, std::memory_order_relaxed);
  next_.store(static_cast<uint64_t>(round) << 32 | UINT32_MAX, std::memory_order_release);
  task_.store(task, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  num_tasks_.store(static_cast<uint32_t>(num_tasks), std::memory_order_relaxed);
  next_.store(static_cast<uint64_t>(round) << 32, std::memory_order_release);
  round_.store(round, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) round_.notify_all();

  drain(round);
  for (int spins = 0; done_.load(std::memory_order_acquire) < num_tasks; ++spins) {
    if (spins < 4096) {
      pause();
    } else {
      std::this_thread::yield();  // the worker that holds the last task was preempted
    }
  }
}

void ThreadPool::work() {
  uint32_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    auto deadline = std::chrono::steady_clock::now() + kSpin;
    uint32_t round;
    while ((round = round_.load(std::memory_order_acquire)) == seen) {
      for (int i = 0; i < 16; ++i) pause();
      if (std::chrono::steady_clock::now() < deadline) continue;
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      round_.wait(seen, std::memory_order_seq_cst);
      sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = round;
    drain(round);
  }
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int num_threads) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<ThreadPool>> pools;
  const std::lock_guard<std::mutex> lock(mutex);
  auto pool = pools[num_threads].lock();
  if (!pool) pools[num_threads] = pool = std::make_shared<ThreadPool>(num_threads);
  return pool;
}

}  // namespace radix
