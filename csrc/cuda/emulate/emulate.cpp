// The scheduler of emulated launches. Never compiled with a sanitizer: it tells ThreadSanitizer itself what orders the
// threads' memory, and what it moves for them is no access of theirs.
#include "cuda/emulate/device.h"

#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include <cstdlib>

#include "cuda/emulate/fiber.h"

// Of ThreadSanitizer, where the program is built with it.
extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* at);
[[gnu::weak]] void __tsan_release(void* at);
}

namespace aigc::emulate {

Thread* running = nullptr;

namespace {

constexpr unsigned WARP = 32;

void acquire(void* at) {
    if (__tsan_acquire)
        __tsan_acquire(at);
}
void release(void* at) {
    if (__tsan_release)
        __tsan_release(at);
}

enum State { READY, AT_BARRIER, IN_WARP, WAITING, ENDED };
enum Operation { SYNC, SHUFFLE, VOTE, MULTIPLY };
constexpr const char* OPERATIONS[] = {"__syncwarp", "a shuffle", "a vote", "multiply_add"};

struct Block;

// What orders memory for ThreadSanitizer at successive meetings: who goes on early must not order what others did
// before by what it does next.
class Meetings {
  public:
    void* next() { return &at_[++count_ % sizeof at_]; }
    void* now() { return &at_[count_ % sizeof at_]; }

  private:
    char at_[8] = {};
    unsigned count_ = 0;
};

struct Fiber : Thread {
    Context context;
    Stack stack;
    void* tsan = nullptr;
    Block* block_of = nullptr;
    State state = READY;
    // What it does together with others of its warp.
    Operation operation;
    unsigned mask;
    const void* in;
    void* out;
    int bytes, source_lane;
    void* meeting;
    float (*to_float)(uint16_t);

    unsigned warp() const { return thread.x / WARP; }
    unsigned lane() const { return thread.x % WARP; }
};

// What lanes of multiply_add exchange.
struct Fragments {
    float* d;
    const uint32_t *a, *b;
};

struct Block {
    Index index{};
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<unsigned> ready; // fibers of each warp
    Meetings barriers;
    std::vector<Meetings> syncs; // of each warp
    void* shared = nullptr;
    unsigned at_barrier = 0, ended = 0;
    ~Block() { std::free(shared); }

    unsigned size() const { return static_cast<unsigned>(fibers.size()); }
    unsigned warps() const { return (size() + WARP - 1) / WARP; }
    unsigned lanes(unsigned warp) const { return std::min(WARP, size() - warp * WARP); }
    Fiber& lane(unsigned warp, unsigned lane) { return *fibers[warp * WARP + lane]; }
    void set(Fiber& fiber, State state) {
        ready[fiber.warp()] += unsigned(state == READY) - unsigned(fiber.state == READY);
        fiber.state = state;
    }
};

// What outlives launches: whose stacks are used again, unless a launch failed.
std::mutex one_launch;
std::vector<std::unique_ptr<Fiber>> idle;
std::vector<std::unique_ptr<Block>> failed;
uint64_t seed = 0;
int64_t resident = 1;
Launch last{};

class Scheduler;
Scheduler* scheduler = nullptr;
Fiber* current = nullptr;

class Scheduler {
  public:
    Scheduler(const Launch& what, void (*body)(const void*), const void* of)
        : what_(what), body_(body), of_(of), random_(seed) {}

    void run() {
        tsan_ = __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
        order_blocks();
        while (failure_.empty() && (next_ < what_.blocks || !active_.empty())) {
            while (next_ < what_.blocks && int64_t(active_.size()) < resident)
                begin_block();
            step();
        }
        acquire(&ends_);
        if (failure_.empty())
            return;
        for (auto& block : active_)
            failed.push_back(std::move(block));
        throw std::runtime_error(std::string("CUDA kernel ") + what_.name + ": " + failure_);
    }

    void thread() {
        acquire(&begins_);
        body_(of_);
        current->copies.clear();
        release(&ends_);
        Block& block = *current->block_of;
        ++block.ended;
        stop(ENDED);
    }

    // Gives the processor back until this fiber is READY again.
    void stop(State state) {
        Fiber& fiber = *current;
        fiber.block_of->set(fiber, state);
        switch_tsan(tsan_);
        fiber.context.switch_to(main_);
    }

    [[noreturn]] void fail(const std::string& why) {
        failure_ = where(*current) + ": " + why;
        stop(WAITING);
        std::abort();
    }

    void barrier() {
        Block& block = *current->block_of;
        void* const meeting = block.barriers.now();
        release(meeting);
        if (++block.at_barrier < block.size()) {
            stop(AT_BARRIER);
        } else {
            block.at_barrier = 0;
            block.barriers.next();
            for (auto& fiber : block.fibers)
                block.set(*fiber, READY);
            // The last to come has no right to go on first.
            stop(READY);
        }
        acquire(meeting);
    }

    void together(Operation operation, unsigned mask) {
        Fiber& fiber = *current;
        Block& block = *fiber.block_of;
        const unsigned lanes = block.lanes(fiber.warp());
        if (lanes < WARP)
            mask &= (1u << lanes) - 1;
        if (!(mask >> fiber.lane() & 1))
            fail(std::string(OPERATIONS[operation]) + " whose mask lacks the lane that calls it");
        fiber.operation = operation;
        fiber.mask = mask;
        fiber.meeting = nullptr;
        bool complete = true;
        for (unsigned l = 0; l < lanes; ++l) {
            const Fiber& other = block.lane(fiber.warp(), l);
            if (!(mask >> l & 1) || &other == &fiber)
                continue;
            if (other.state == IN_WARP && other.mask == mask && other.operation == operation)
                fiber.meeting = other.meeting;
            else
                complete = false;
        }
        if (!fiber.meeting)
            fiber.meeting = block.syncs[fiber.warp()].next();
        if (operation == SYNC)
            release(fiber.meeting);
        if (complete)
            finish(block, fiber);
        stop(complete ? READY : IN_WARP);
        if (operation == SYNC)
            acquire(fiber.meeting);
    }

  private:
    uint64_t below(uint64_t n) { return random_() % n; }

    // Blocks in an order that needs no memory: multiples of a number that has no divisor in common with theirs.
    void order_blocks() {
        first_ = static_cast<int64_t>(below(static_cast<uint64_t>(what_.blocks)));
        do
            stride_ = static_cast<int64_t>(1 + below(static_cast<uint64_t>(what_.blocks)));
        while (std::gcd(stride_, what_.blocks) != 1);
        if (seed == 0) {
            first_ = 0;
            stride_ = 1;
        }
    }

    void begin_block() {
        auto block = std::make_unique<Block>();
        const auto index = static_cast<unsigned>((first_ + stride_ * next_++) % what_.blocks);
        block->index = {index, 0, 0};
        constexpr size_t ALIGNMENT = 128;
        if (what_.shared > 0) {
            if (posix_memalign(&block->shared, ALIGNMENT, what_.shared) != 0)
                throw std::bad_alloc();
            fill_with_nan(block->shared, what_.shared);
        }
        block->fibers.reserve(what_.threads);
        for (unsigned i = 0; i < what_.threads; ++i)
            block->fibers.push_back(fiber_of(*block, i));
        block->ready.resize(block->warps());
        block->syncs.resize(block->warps());
        for (unsigned w = 0; w < block->warps(); ++w)
            block->ready[w] = block->lanes(w);
        active_.push_back(std::move(block));
        release(&begins_);
    }

    // Bytewise, as ThreadSanitizer looks into memset and memcpy.
    static void fill_with_nan(void* to, size_t bytes) {
        auto* out = static_cast<volatile unsigned char*>(to);
        for (size_t i = 0; i < bytes; ++i)
            out[i] = 0xff;
    }
    static void move(const void* from, void* to, int bytes) {
        const auto* in = static_cast<const volatile unsigned char*>(from);
        auto* out = static_cast<volatile unsigned char*>(to);
        for (int i = 0; i < bytes; ++i)
            out[i] = in[i];
    }

    std::unique_ptr<Fiber> fiber_of(Block& block, unsigned thread) {
        std::unique_ptr<Fiber> fiber;
        if (idle.empty()) {
            fiber = std::make_unique<Fiber>();
            fiber->tsan = __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
        } else {
            fiber = std::move(idle.back());
            idle.pop_back();
        }
        fiber->thread = {thread, 0, 0};
        fiber->block = block.index;
        fiber->threads = {what_.threads, 1, 1};
        fiber->blocks = {static_cast<unsigned>(what_.blocks), 1, 1};
        fiber->shared = block.shared;
        fiber->block_of = &block;
        fiber->state = READY;
        fiber->context.begin(fiber->stack, [] { scheduler->thread(); });
        return fiber;
    }

    // One warp of one block goes as far as it can before any other does.
    void step() {
        const uint64_t of = below(active_.size());
        for (size_t i = 0; i < active_.size(); ++i) {
            const size_t at = (of + i) % active_.size();
            Block& block = *active_[at];
            const unsigned first = static_cast<unsigned>(below(block.warps()));
            for (unsigned w = 0; w < block.warps(); ++w)
                if (const unsigned warp = (first + w) % block.warps(); block.ready[warp] > 0) {
                    run_warp(block, warp);
                    if (failure_.empty() && block.ended == block.size())
                        end_block(at);
                    return;
                }
        }
        wake_waiting();
    }

    void run_warp(Block& block, unsigned warp) {
        const unsigned lanes = block.lanes(warp);
        while (failure_.empty() && block.ready[warp] > 0) {
            const unsigned first = static_cast<unsigned>(below(lanes)), direction = below(2) ? 1 : lanes - 1;
            for (unsigned l = 0; failure_.empty() && l < lanes; ++l) {
                Fiber& fiber = block.lane(warp, (first + l * direction) % lanes);
                if (fiber.state == READY)
                    go_on(fiber);
            }
        }
    }

    void go_on(Fiber& fiber) {
        current = &fiber;
        running = &fiber;
        switch_tsan(fiber.tsan);
        main_.switch_to(fiber.context);
    }

    void switch_tsan(void* fiber) {
        constexpr unsigned NO_SYNC = 1;
        if (__tsan_switch_to_fiber)
            __tsan_switch_to_fiber(fiber, NO_SYNC);
    }

    void end_block(size_t at) {
        looks_ = 0;
        for (auto& fiber : active_[at]->fibers)
            idle.push_back(std::move(fiber));
        // To give memory back would be an access that nothing orders after those of its threads.
        if (__tsan_release)
            ended_.push_back(std::move(active_[at]));
        active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(at));
    }

    // Those that wait for another block look again.
    void wake_waiting() {
        constexpr int MOST_LOOKS = 10000; // while no block ends
        bool any = false;
        for (auto& block : active_)
            for (auto& fiber : block->fibers)
                if (fiber->state == WAITING) {
                    block->set(*fiber, READY);
                    any = true;
                }
        if (!any)
            failure_ = stuck();
        else if (++looks_ > MOST_LOOKS)
            failure_ = "all blocks that are resident wait for others";
    }

    // Does what all lanes of the mask have come to.
    void finish(Block& block, Fiber& last_to_come) {
        const unsigned warp = last_to_come.warp(), mask = last_to_come.mask;
        Fiber* lanes[WARP] = {};
        unsigned votes = 0;
        for (unsigned l = 0; l < block.lanes(warp); ++l)
            if (mask >> l & 1) {
                lanes[l] = &block.lane(warp, l);
                if (lanes[l]->operation == VOTE)
                    votes |= unsigned(*static_cast<const bool*>(lanes[l]->in)) << l;
            }
        switch (last_to_come.operation) {
        case SHUFFLE:
            exchange(lanes);
            break;
        case VOTE:
            for (Fiber* lane : lanes)
                if (lane)
                    *static_cast<unsigned*>(lane->out) = votes;
            break;
        case MULTIPLY:
            multiply(lanes);
            break;
        case SYNC:
            break;
        }
        for (Fiber* lane : lanes)
            if (lane)
                block.set(*lane, READY);
    }

    void exchange(Fiber* (&lanes)[WARP]) {
        for (Fiber* lane : lanes) {
            if (!lane)
                continue;
            const Fiber* const source = lanes[lane->source_lane % int(WARP)];
            if (!source) {
                failure_ = where(*lane) + ": a shuffle from a lane that its mask lacks";
                return;
            }
            move(source->in, lane->out, lane->bytes);
        }
    }

    // A is 16x16, of rows lane / 4 and 8 further down, B 16x8 of columns lane / 4; each word holds two neighbours in k.
    void multiply(Fiber* (&lanes)[WARP]) {
        float a[16][16], b[16][8], d[16][8];
        const auto fragments = [&](unsigned l) { return *static_cast<const Fragments*>(lanes[l]->in); };
        for (unsigned l = 0; l < WARP; ++l) {
            if (!lanes[l]) {
                failure_ = where(*current) + ": multiply_add by less than a warp";
                return;
            }
            const unsigned group = l / 4, pair = l % 4 * 2;
            const auto half = [&](uint32_t word, unsigned upper) {
                return lanes[l]->to_float(static_cast<uint16_t>(word >> 16 * upper));
            };
            for (unsigned upper = 0; upper < 2; ++upper) {
                for (unsigned i = 0; i < 4; ++i)
                    a[group + 8 * (i % 2)][pair + upper + 8 * (i / 2)] = half(fragments(l).a[i], upper);
                for (unsigned i = 0; i < 2; ++i)
                    b[pair + upper + 8 * i][group] = half(fragments(l).b[i], upper);
            }
            for (unsigned i = 0; i < 4; ++i)
                d[group + 8 * (i / 2)][pair + i % 2] = fragments(l).d[i];
        }
        for (int row = 0; row < 16; ++row)
            for (int column = 0; column < 8; ++column)
                for (int k = 0; k < 16; ++k)
                    d[row][column] += a[row][k] * b[k][column];
        for (unsigned l = 0; l < WARP; ++l)
            for (unsigned i = 0; i < 4; ++i)
                fragments(l).d[i] = d[l / 4 + 8 * (i / 2)][l % 4 * 2 + i % 2];
    }

    static std::string where(const Fiber& fiber) {
        return "block " + std::to_string(fiber.block.x) + ", thread " + std::to_string(fiber.thread.x);
    }

    std::string stuck() const {
        for (const auto& block : active_)
            for (const auto& fiber : block->fibers) {
                if (fiber->state == AT_BARRIER)
                    return where(*fiber) + ": waits at a barrier to which not all threads of its block come";
                if (fiber->state == IN_WARP)
                    return where(*fiber) + ": waits in " + OPERATIONS[fiber->operation] +
                           " to which not all lanes of its mask come";
            }
        return "nothing goes on";
    }

    const Launch& what_;
    void (*const body_)(const void*);
    const void* const of_;
    std::mt19937_64 random_;
    Context main_;
    void* tsan_ = nullptr;
    std::vector<std::unique_ptr<Block>> active_, ended_;
    char begins_ = 0, ends_ = 0; // what orders the threads' memory after the launch and before its end
    int64_t next_ = 0, first_ = 0, stride_ = 1;
    int looks_ = 0;
    std::string failure_;
};

}

void set_order(uint64_t of_seed, int64_t resident_blocks) {
    const std::lock_guard lock(one_launch);
    seed = of_seed;
    resident = resident_blocks;
}

int64_t resident_blocks() {
    const std::lock_guard lock(one_launch);
    return resident;
}

void launch(const Launch& what, void (*body)(const void*), const void* of) {
    const std::lock_guard lock(one_launch);
    last = what;
    Scheduler one(what, body, of);
    scheduler = &one;
    one.run();
}

Launch last_launch() {
    const std::lock_guard lock(one_launch);
    return last;
}

void fail(const char* why) { scheduler->fail(why); }
void let_others_run() { scheduler->stop(WAITING); }
void wait_for_block() { scheduler->barrier(); }
void wait_for_warp(unsigned mask) { scheduler->together(SYNC, mask); }

void shuffle(unsigned mask, const void* in, void* out, int bytes, int source_lane) {
    current->in = in;
    current->out = out;
    current->bytes = bytes;
    current->source_lane = source_lane;
    scheduler->together(SHUFFLE, mask);
}

unsigned vote(unsigned mask, bool predicate) {
    unsigned found = 0;
    current->in = &predicate;
    current->out = &found;
    scheduler->together(VOTE, mask);
    return found;
}

void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*to_float)(uint16_t)) {
    const Fragments mine{d, a, b};
    current->in = &mine;
    current->to_float = to_float;
    scheduler->together(MULTIPLY, 0xffffffffu);
}

}
