// The output cut into parts, one per thread: each thread takes its images, or its rows of them, through all stages, so
// that what it makes of them stays in its own cache. Threads that work on the same image hand it from core to core.
#pragma once

#include "core/parallel.h"
#include "cpu/conv_transpose/windows.h"

namespace aigc::AIGC_LEVEL::conv_transpose {
namespace {

constexpr int64_t PARTS_PER_THREAD = 4;

// A convolution, transposed or not, of its own.
struct Part {
    Geometry g;
    Image in, out;
};

class Parts {
  public:
    // weight_floats: what every part reads or writes besides its share of the maps; no parts where that outweighs them.
    // per_thread: parts of images for each thread, at most: one that is slow, or shared, takes fewer of them.
    Parts(const Geometry& g, const Image& in, const Image& out, int64_t weight_floats, int64_t per_thread = 1)
        : whole_{g, in, out} {
        const int64_t threads = thread_count(), work = g.multiply_adds(out), maps = in.numel() + out.numel();
        for (axis_ = IMAGES; axis_ < AXES; ++axis_)
            for (int64_t share = axis_ == IMAGES ? per_thread : 1; share > 0; share /= 2) {
                count_ = threads * share;
                if (work >= LEAST_WORK * count_ && weight_floats * count_ <= maps && is_even())
                    return;
            }
        count_ = 1;
    }

    int64_t count() const { return count_; }

    Part at(int64_t index) const {
        Part part(whole_);
        if (count_ == 1)
            return part;
        const int64_t first = border(index), size = border(index + 1) - first;
        if (axis_ == IMAGES) {
            part.in = part.in.images(first, size);
            part.out = part.out.images(first, size);
            return part;
        }
        Axis& axis = part.g.axis[axis_];
        axis.out = size;
        axis.padding += axis.transposed ? first : -first * axis.stride;
        part.out = part.out.rows(axis_, first, size);
        return part;
    }

    // f(index, part) says whether it could; so does this, of all of them.
    template <class F>
    bool for_each(const F& f) const {
        return parallel_all(0, count_, 1, [&](int64_t begin, int64_t end) {
            bool fine = true;
            for (int64_t i = begin; i < end; ++i)
                fine &= f(i, at(i));
            return fine;
        });
    }

  private:
    // Where a part begins; a row that begins a part is of the first phase.
    int64_t border(int64_t index) const {
        if (axis_ == IMAGES)
            return whole_.out.batch * index / count_;
        const int64_t size = whole_.out.size[axis_], step = whole_.g.axis[axis_].out_step();
        return least(size, ceil_div(size, step) * index / count_ * step);
    }
    int64_t work(const Part& part) const {
        return axis_ == IMAGES ? part.out.batch : part.out.size[axis_] ? Windows(part.g).axis[axis_].tiles : 0;
    }
    // No share is much larger than the mean.
    bool is_even() const {
        int64_t largest = 0;
        for (int64_t i = 0; i < count_; ++i)
            largest = most(largest, work(at(i)));
        return 10 * largest * count_ <= 11 * work(whole_);
    }

    static constexpr int IMAGES = -1;
    const Part whole_;
    int64_t count_ = 1;
    int axis_ = IMAGES;
};

// sum(part, sums) adds up over a part of the small map and says whether it could. The result lies in the scope; null
// where a part could not.
template <class F>
float* sum_over(Scope& scope, const Parts& parts, int64_t sums_size, const F& sum) {
    const int64_t step = round_up(sums_size, VF);
    auto* sums = scope.take<float>(parts.count() * step);
    if (!parts.for_each([&](int64_t i, const Part& part) { return sum(part, sums + i * step); }))
        return nullptr;
    if (parts.count() > 1)
        parallel_for(0, step / VF, 4096, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin * VF; i < end * VF; i += VF) {
                vf total = load(sums + i);
                for (int64_t part = 1; part < parts.count(); ++part)
                    total += load(sums + part * step + i);
                store(sums + i, total);
            }
        });
    return sums;
}

}
}
