// A small pool of persistent threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace radix {

// Runs numbered tasks on the calling thread and on `num_threads - 1` workers.
//
// Tasks are claimed one at a time, so a worker that is asleep, was preempted or did not survive a
// fork() delays nobody: the caller computes what nobody has claimed and waits for claimed tasks
// only. A worker spins briefly after its last task, since the next call of a forward pass follows
// within microseconds, then sleeps until it is notified.
class ThreadPool {
 public:
  using Task = void (*)(void* context, int64_t task);

  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Returns when all tasks are done. Safe to call from several threads: while one caller has the
  // workers, the others compute alone.
  void run(int64_t num_tasks, Task task, void* context);

  // The pool of `num_threads` threads that all its users share while any of them lives.
  static std::shared_ptr<ThreadPool> shared(int num_threads);

 private:
  void work();
  // Claims and runs tasks of round `round` until none is left.
  void drain(uint32_t round);

  // The round in the upper half, the next unclaimed task in the lower one: a claim of a finished
  // round cannot succeed in the following one.
  std::atomic<uint64_t> next_{0};
  std::atomic<uint32_t> num_tasks_{0};
  std::atomic<uint32_t> done_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> round_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  const int num_threads_;
  const int process_;
  std::mutex caller_;
  std::vector<std::thread> workers_;
};

// Calls `function(task)` for every task in [0, num_tasks).
template <class Function>
void parallel_for(ThreadPool& pool, int64_t num_tasks, Function&& function) {
  if (num_tasks <= 1 || pool.num_threads() == 1) {
    for (int64_t task = 0; task < num_tasks; ++task) function(task);
    return;
  }
  using Callable = std::remove_reference_t<Function>;
  pool.run(
      num_tasks, [](void* context, int64_t task) { (*static_cast<Callable*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace radix
