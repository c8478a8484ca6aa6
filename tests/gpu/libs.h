/* The tests of test_libs.c that need a GPU. */
#ifndef LIBS_H
#define LIBS_H

void test_products(void **state);
void test_product_speed(void **state);
void test_choices_are_kept(void **state);
void test_attention(void **state);
void test_convolution(void **state);
void test_plans_are_kept(void **state);

#endif
