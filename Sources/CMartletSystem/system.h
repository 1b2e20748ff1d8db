// What Swift cannot declare itself: zlib. Linked statically by MartletData.
#include <zlib.h>
