/* One library for every processor of an architecture: the widest vectors are chosen when it loads. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

/* Inlined into such a function, code is compiled for its processor. */
#define INLINE static inline __attribute__((always_inline))

#ifndef REAL
#define REAL float
#endif
#define SQRT(x) _Generic((x), float: sqrtf, double: sqrt)(x)
#define EXP(x) _Generic((x), float: expf, double: exp)(x)
