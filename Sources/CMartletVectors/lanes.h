// Vectors of LANES floats, for the instruction set TARGET. Included once for each, with NAME(x) giving x its suffix.

typedef float NAME(Lanes) __attribute__((vector_size(4 * LANES)));
typedef unsigned NAME(Bits) __attribute__((vector_size(4 * LANES)));
typedef float NAME(Unaligned) __attribute__((vector_size(4 * LANES), aligned(4)));
#define Lanes NAME(Lanes)
#define Bits NAME(Bits)
#define load NAME(load)
#define store NAME(store)
#define spread NAME(spread)
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE Lanes load(const float *p) { return *(const NAME(Unaligned) *)p; }
INLINE void store(float *p, Lanes x) { *(NAME(Unaligned) *)p = x; }
INLINE Lanes spread(float x) { return x - (Lanes){}; }
