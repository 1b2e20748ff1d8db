// Forgets what was defined for one instruction set.
#undef Lanes
#undef Bits
#undef load
#undef store
#undef spread
#undef INLINE
#undef LANES
#undef ROWS
#undef NAME
#undef TARGET
