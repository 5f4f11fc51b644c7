// A number that changes with the bytes of a tensor: all of them, or a few in every page.
#include "core/digest.h"
#include "core/kernel.h"

namespace aigc::AIGC_LEVEL::digest {
namespace {

int64_t digest(void* data, int64_t bytes, int64_t whole) {
    const auto* at = static_cast<const char*>(data);
    return static_cast<int64_t>((whole ? whole_digest(at, bytes) : sparse_digest(at, bytes)) >> 1);
}

}

AIGC_EXPORT(AIGC_KERNEL(digest))

}
