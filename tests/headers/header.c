/* The public header alone, in C99, without any other include before it. */
#include <calotype/calotype.h>

int main(void)
{
    ct_error error = {CT_OK, ""};
    return sizeof error > 0 && CT_OK == 0 ? 0 : 1;
}
