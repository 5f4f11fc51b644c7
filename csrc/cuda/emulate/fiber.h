// Stacks of their own for functions that stop and go on: a hand-written switch on x86-64, swapcontext elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) || defined(AIGC_SWAP_CONTEXTS)
#include <ucontext.h>
#endif

namespace aigc::emulate {

constexpr size_t STACK_BYTES = 256 << 10;

// Memory below which nothing can be written.
class Stack {
  public:
    Stack() {
        void* const memory =
            mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            throw std::bad_alloc();
        bottom_ = static_cast<char*>(memory);
        mprotect(bottom_, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
    }
    Stack(const Stack&) = delete;
    char* bottom() const { return bottom_; }
    char* top() const { return bottom_ + STACK_BYTES; }

  private:
    char* bottom_;
};

#if defined(__x86_64__) && !defined(AIGC_SWAP_CONTEXTS)

extern "C" void aigc_switch_stack(void** from, void* to);
asm(R"(
.text
.globl aigc_switch_stack
.hidden aigc_switch_stack
.type aigc_switch_stack, @function
aigc_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size aigc_switch_stack, . - aigc_switch_stack
)");

class Context {
  public:
    // Begins `entry`, which never returns, at the first switch.
    void begin(const Stack& stack, void (*entry)()) {
        constexpr int REGISTERS = 6;
        auto* top = reinterpret_cast<uintptr_t*>(stack.top()) - 1; // aligned as after a call
        *top = 0;                                                  // where `entry` would return to
        *--top = reinterpret_cast<uintptr_t>(entry);
        for (int i = 0; i < REGISTERS; ++i)
            *--top = 0;
        pointer_ = top;
    }
    void switch_to(Context& other) { aigc_switch_stack(&pointer_, other.pointer_); }

  private:
    void* pointer_ = nullptr;
};

#else

class Context {
  public:
    void begin(const Stack& stack, void (*entry)()) {
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack.bottom();
        context_.uc_stack.ss_size = STACK_BYTES;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }
    void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

  private:
    ucontext_t context_;
};

#endif

}
