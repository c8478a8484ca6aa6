/* Members of JSON objects: a key and a value in one call. */
#ifndef CLI_MEMBERS_H
#define CLI_MEMBERS_H

#include <calotype/calotype.h>

#include "io/jsonwrite.h"

#include <stdio.h>

void member_string(json_writer *w, const char *key, const char *value); /* NULL: null */
void member_integer(json_writer *w, const char *key, int64_t value);
void member_unsigned(json_writer *w, const char *key, uint64_t value);
/* A string above 2^53, as in recipes, because many programs keep numbers as doubles. */
void member_seed(json_writer *w, const char *key, uint64_t seed);
void member_number(json_writer *w, const char *key, double value);
void member_boolean(json_writer *w, const char *key, bool value);
/* A value that is JSON already and stands on one line; null when it is empty. */
void member_raw(json_writer *w, const char *key, const char *json);

/* "loras": what the files are, and how much of each the model has. */
void member_loras(json_writer *w, const ct_model_info *model);

/* One object on a line of its own; its members are written between the two. */
void members_open(json_writer *w, strbuf *s);
void members_close(FILE *out, json_writer *w, strbuf *s);

#endif
