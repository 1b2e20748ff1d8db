// What Swift cannot declare itself: zlib for MartletData, libyaml for Martlet. Both are linked statically.
#include <yaml.h>
#include <zlib.h>
