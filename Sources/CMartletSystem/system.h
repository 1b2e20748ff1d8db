// What Swift cannot declare itself: PCRE2 (8-bit code units) and zlib. Linked statically by MartletData.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <zlib.h>
