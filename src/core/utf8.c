#include "core/utf8.h"

uint32_t utf8_next(const char *text, size_t length, size_t *at)
{
    const unsigned char *s = (const unsigned char *)text + *at;
    size_t left = length - *at;
    *at += 1;
    uint32_t point = s[0];
    if (point < 0x80)
        return point;
    size_t more;
    uint32_t smallest; /* with fewer bytes the same point could be written shorter */
    if (point >= 0xc2 && point < 0xe0) {
        more = 1;
        smallest = 0x80;
        point &= 0x1f;
    } else if ((point & 0xf0) == 0xe0) {
        more = 2;
        smallest = 0x800;
        point &= 0x0f;
    } else if (point >= 0xf0 && point < 0xf5) {
        more = 3;
        smallest = 0x10000;
        point &= 0x07;
    } else {
        return UTF8_INVALID;
    }
    if (more >= left)
        return UTF8_INVALID;
    for (size_t i = 1; i <= more; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return UTF8_INVALID;
        point = point << 6 | (s[i] & 0x3f);
    }
    if (point < smallest || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
        return UTF8_INVALID;
    *at += more;
    return point;
}

size_t utf8_put(uint32_t point, char out[4])
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    size_t more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};
    out[0] = (char)(first[more] | point >> (6 * more));
    for (size_t i = 1; i <= more; i++)
        out[i] = (char)(0x80 | (point >> (6 * (more - i)) & 0x3f));
    return more + 1;
}

bool utf8_valid(const char *text, size_t length)
{
    for (size_t at = 0; at < length;)
        if (utf8_next(text, length, &at) == UTF8_INVALID)
            return false;
    return true;
}
