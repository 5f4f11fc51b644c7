// Old versions of what a new glibc has new versions of, so that one library runs wherever manylinux_2_28 does: what
// calls these functions, the statically linked libstdc++ included, gets the definitions here, which ask for the old
// versions by name. Where glibc is old itself there is nothing to do.
#if defined(__linux__)
#include <features.h>
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 29)

#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

#if defined(__x86_64__)
#define AIGC_FIRST_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define AIGC_FIRST_VERSION "GLIBC_2.17"
#endif

#if defined(AIGC_FIRST_VERSION)
#define AIGC_HIDDEN __attribute__((visibility("hidden"), used))
// The function NAME of this library, given (TYPED) and called with (VALUES): the first version of glibc's.
#define AIGC_OLD(RESULT, NAME, TYPED, VALUES)                                                                          \
    __asm__(".symver aigc_old_" #NAME "," #NAME "@" AIGC_FIRST_VERSION);                                               \
    RESULT aigc_old_##NAME TYPED;                                                                                      \
    AIGC_HIDDEN RESULT aigc_##NAME TYPED __asm__(#NAME);                                                               \
    RESULT aigc_##NAME TYPED { return aigc_old_##NAME VALUES; }

extern "C" {

AIGC_OLD(void*, dlsym, (void* handle, const char* name), (handle, name))
AIGC_OLD(int, pthread_create, (pthread_t * thread, const pthread_attr_t* with, void* (*run)(void*), void* given),
         (thread, with, run, given))
AIGC_OLD(int, pthread_join, (pthread_t thread, void** result), (thread, result))
AIGC_OLD(int, pthread_detach, (pthread_t thread), (thread))
AIGC_OLD(int, pthread_once, (pthread_once_t * once, void (*run)()), (once, run))
AIGC_OLD(int, pthread_key_create, (pthread_key_t * key, void (*end)(void*)), (key, end))
AIGC_OLD(int, pthread_key_delete, (pthread_key_t key), (key))
AIGC_OLD(void*, pthread_getspecific, (pthread_key_t key), (key))
AIGC_OLD(int, pthread_setspecific, (pthread_key_t key, const void* value), (key, value))
AIGC_OLD(double, log, (double x), (x))

// By its presence libstdc++ asks whether there are threads.
AIGC_HIDDEN int aigc_has_threads(pthread_key_t* key, void (*end)(void*)) __asm__("__pthread_key_create");
int aigc_has_threads(pthread_key_t* key, void (*end)(void*)) { return aigc_pthread_key_create(key, end); }

// New in glibc 2.32. False makes shared pointers count atomically always.
__attribute__((visibility("hidden"))) extern char aigc_is_single_threaded __asm__("__libc_single_threaded");
char aigc_is_single_threaded = 0;

// New in glibc 2.36, for std::random_device, which nothing here uses.
AIGC_HIDDEN uint32_t aigc_arc4random() __asm__("arc4random");
uint32_t aigc_arc4random() {
    uint32_t number = 0;
    return getentropy(&number, sizeof number) == 0 ? number : 0;
}
}
#endif
#endif
#endif
