#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace aigc {
namespace {

// More pieces than threads: a core that is slow, or shared with another process, takes fewer of them.
constexpr int64_t PIECES_PER_THREAD = 16;

struct Job {
    int64_t begin, end, pieces;
    RangeFunction function;
    void* context;
    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;

    void run_pieces() {
        for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
            const int64_t total = end - begin;
            try {
                function(context, begin + total * piece / pieces, begin + total * (piece + 1) / pieces);
            } catch (...) {
                std::lock_guard lock(guard);
                error = std::current_exception();
            }
        }
    }
};

struct Team {
    int64_t members;
    MemberFunction function;
    void* context;
    std::atomic<int64_t> next{0};
};

thread_local bool inside_region = false;
std::atomic<bool> forked{false};

void run_inside(void* job) {
    inside_region = true;
    static_cast<Job*>(job)->run_pieces();
    inside_region = false;
}

// Every thread of the pool comes here once.
void run_member(void* context) {
    Team& team = *static_cast<Team*>(context);
    const int64_t member = team.next.fetch_add(1, std::memory_order_relaxed);
    if (member >= team.members)
        return;
    inside_region = true;
    team.function(team.context, member, team.members);
    inside_region = false;
}

class ThreadPool {
  public:
    explicit ThreadPool(int64_t workers) {
        for (int64_t i = 0; i < workers; ++i)
            threads_.emplace_back([this] { work(); });
    }
    ~ThreadPool() {
        {
            std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_)
            thread.join();
    }
    // On all threads and the caller's.
    void run(void (*function)(void*), void* context) {
        std::lock_guard one_job_at_a_time(callers_);
        {
            std::lock_guard lock(mutex_);
            function_ = function;
            context_ = context;
            busy_ = threads_.size();
            ++generation_;
        }
        wake_.notify_all();
        function(context);
        std::unique_lock lock(mutex_);
        idle_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void work() {
        for (uint64_t seen = 0;;) {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
            if (stopping_)
                return;
            seen = generation_;
            const auto function = function_;
            void* const context = context_;
            lock.unlock();
            function(context);
            lock.lock();
            if (--busy_ == 0)
                idle_.notify_one();
        }
    }

    std::vector<std::thread> threads_;
    std::mutex callers_, mutex_;
    std::condition_variable wake_, idle_;
    void (*function_)(void*) = nullptr;
    void* context_ = nullptr;
    size_t busy_ = 0;
    uint64_t generation_ = 0;
    bool stopping_ = false;
};

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*max_threads)() = nullptr;
    int (*in_parallel)() = nullptr;
    int (*team_size)() = nullptr;

    OpenMP() {
#if !defined(_WIN32)
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        max_threads = reinterpret_cast<decltype(max_threads)>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
        in_parallel = reinterpret_cast<decltype(in_parallel)>(dlsym(RTLD_DEFAULT, "omp_in_parallel"));
        team_size = reinterpret_cast<decltype(team_size)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
        // A forked child inherits a pool whose threads are gone: entering it would wait for ever.
        pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
    }
    bool usable() const { return parallel && max_threads && in_parallel && team_size; }
};

const OpenMP& openmp() {
    static const OpenMP found;
    return found;
}

// OpenMP may give a team fewer threads than it was asked for.
void run_openmp_member(void* context) {
    Team& team = *static_cast<Team*>(context);
    const int64_t members = openmp().team_size();
    inside_region = true;
    team.function(team.context, team.next.fetch_add(1, std::memory_order_relaxed), members);
    inside_region = false;
}

// Leaves the core's resources to its other thread for a moment.
void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// At work for a while, then giving way to other threads.
template <class F>
void wait_until(const F& is_there) {
    constexpr int SPINS = 1024;
    for (int spin = 0; !is_there(); ++spin)
        if (spin < SPINS)
            pause();
        else
            std::this_thread::yield();
}

int64_t pool_size() {
    const char* asked = std::getenv("OMP_NUM_THREADS");
    const int64_t wanted = asked ? std::atoll(asked) : 0;
    return std::max<int64_t>(1, wanted > 0 ? wanted : std::thread::hardware_concurrency());
}

ThreadPool& own_pool() {
    static ThreadPool pool(pool_size() - 1);
    return pool;
}

}

int64_t thread_count() {
    if (forked || inside_region)
        return 1;
    const OpenMP& omp = openmp();
    if (!omp.usable())
        return pool_size();
    return omp.in_parallel() ? 1 : omp.max_threads();
}

const char* thread_pool_name() { return openmp().usable() ? "torch's OpenMP" : "std::thread"; }

void parallel_run(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
    if (end <= begin)
        return;
    const int64_t most_pieces = std::max<int64_t>(1, (end - begin) / std::max<int64_t>(1, grain));
    const int64_t threads = std::min(thread_count(), most_pieces);
    if (threads <= 1) {
        function(context, begin, end);
        return;
    }
    const int64_t pieces = std::min(most_pieces, threads * PIECES_PER_THREAD);
    Job job{.begin = begin, .end = end, .pieces = pieces, .function = function, .context = context};
    if (openmp().usable())
        openmp().parallel(run_inside, &job, static_cast<unsigned>(threads), 0);
    else
        own_pool().run(run_inside, &job);
    if (job.error)
        std::rethrow_exception(job.error);
}

void team_run(int64_t wanted, MemberFunction function, void* context) {
    const int64_t threads = std::min(thread_count(), wanted);
    if (threads <= 1) {
        function(context, 0, 1);
        return;
    }
    Team team{.members = threads, .function = function, .context = context};
    if (openmp().usable())
        openmp().parallel(run_openmp_member, &team, static_cast<unsigned>(threads), 0);
    else
        own_pool().run(run_member, &team);
}

void Barrier::wait(int64_t members) {
    if (members <= 1)
        return;
    std::atomic_ref arrived(arrived_), passed(passed_);
    const int64_t before = passed.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
        arrived.store(0, std::memory_order_relaxed);
        passed.store(before + 1, std::memory_order_release);
        return;
    }
    wait_until([&] { return passed.load(std::memory_order_acquire) != before; });
}

void Progress::reach(int64_t place) { std::atomic_ref(reached_).store(place, std::memory_order_release); }

void Progress::wait_for(int64_t place) {
    const std::atomic_ref reached(reached_);
    wait_until([&] { return reached.load(std::memory_order_acquire) >= place; });
}

}
