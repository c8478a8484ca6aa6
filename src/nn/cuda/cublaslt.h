/* What is used of cuBLASLt, declared here so that nothing of CUDA is needed to build. Names, values
 * and layouts are those of cublasLt.h, cublas_api.h and library_types.h of CUDA 12.9 and 13. */
#ifndef NN_CUDA_CUBLASLT_H
#define NN_CUDA_CUBLASLT_H

#include <stddef.h>
#include <stdint.h>

typedef int lt_status; /* cublasStatus_t */
typedef struct lt_handle_object *lt_handle;
typedef struct lt_desc_object *lt_desc;             /* cublasLtMatmulDesc_t */
typedef struct lt_layout_object *lt_layout;         /* cublasLtMatrixLayout_t */
typedef struct lt_preference_object *lt_preference; /* cublasLtMatmulPreference_t */
struct cu_stream_object;

/* cublasLtMatmulAlgo_t: plain data, valid for one version of the library. */
typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;

/* cublasLtMatmulHeuristicResult_t */
typedef struct lt_candidate {
    lt_algo algo;
    size_t workspace; /* bytes */
    lt_status state;  /* the rest counts only where this is 0 */
    float waves;
    int reserved[4];
} lt_candidate;

enum {
    LT_SUCCESS = 0,      /* CUBLAS_STATUS_SUCCESS */
    LT_ALLOC_FAILED = 3, /* CUBLAS_STATUS_ALLOC_FAILED */
    LT_INVALID_VALUE =
        7, /* CUBLAS_STATUS_INVALID_VALUE: also what an older version does not know */
    LT_ARCH_MISMATCH = 8, /* CUBLAS_STATUS_ARCH_MISMATCH */
    LT_NOT_SUPPORTED = 15 /* CUBLAS_STATUS_NOT_SUPPORTED */
};

enum { /* cudaDataType_t */
       LT_R_32F = 0,
       LT_R_16F = 2,
       LT_R_8I = 3,
       LT_R_32I = 10,
       LT_R_16BF = 14,
       LT_R_8F_E4M3 = 28
};

enum {
    LT_COMPUTE_32F =
        68, /* CUBLAS_COMPUTE_32F: of float32 the true product; TF32 is another value */
    LT_COMPUTE_32I = 72, /* CUBLAS_COMPUTE_32I */
    LT_OP_N = 0,         /* CUBLAS_OP_N */
    LT_OP_T = 1          /* CUBLAS_OP_T */
};

enum {                               /* cublasLtMatmulDescAttributes_t, CUBLASLT_MATMUL_DESC_... */
       LT_DESC_TRANSA = 3,           /* int32 */
       LT_DESC_TRANSB = 4,           /* int32 */
       LT_DESC_EPILOGUE = 7,         /* uint32 */
       LT_DESC_BIAS_POINTER = 8,     /* const void * */
       LT_DESC_A_SCALE_POINTER = 17, /* const void * */
       LT_DESC_B_SCALE_POINTER = 18,
       LT_DESC_FAST_ACCUM = 25,     /* int8 */
       LT_DESC_BIAS_DATA_TYPE = 26, /* int32 */
       LT_DESC_A_SCALE_MODE = 31,   /* int32 */
       LT_DESC_B_SCALE_MODE = 32
};

enum {
    LT_SCALE_OUTER_VEC_32F = 3,         /* CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F, from 12.9 */
    LT_EPILOGUE_DEFAULT = 1,            /* CUBLASLT_EPILOGUE_DEFAULT */
    LT_EPILOGUE_BIAS = 4,               /* CUBLASLT_EPILOGUE_BIAS */
    LT_EPILOGUE_GELU = 32,              /* CUBLASLT_EPILOGUE_GELU; with BIAS: GELU_BIAS */
    LT_LAYOUT_BATCH_COUNT = 5,          /* CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32 */
    LT_LAYOUT_STRIDED_BATCH_OFFSET = 6, /* CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64 */
    LT_REDUCTION_COMPUTE_TYPE = 2       /* CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE */
};

enum { /* cublasLtMatmulPreferenceAttributes_t, CUBLASLT_MATMUL_PREF_... */
       LT_PREF_MAX_WORKSPACE_BYTES = 1,   /* uint64 */
       LT_PREF_REDUCTION_SCHEME_MASK = 3, /* uint32 */
       LT_PREF_MIN_ALIGNMENT_A = 5,       /* uint32, bytes; also B, C and D */
       LT_PREF_MIN_ALIGNMENT_B = 6,
       LT_PREF_MIN_ALIGNMENT_C = 7,
       LT_PREF_MIN_ALIGNMENT_D = 8,
       LT_PREF_IMPL_MASK = 12 /* uint64 of the flag below and others: what may be used */
};
#define LT_IMPL_INPUT_TF32 ((uint64_t)0x04 << 16) /* CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_TF32 */

/* F(member, type of the result, symbol, parameters) */
#define CUBLASLT_FUNCTIONS(F)                                                                      \
    F(create, lt_status, "cublasLtCreate", (lt_handle * handle))                                   \
    F(destroy, lt_status, "cublasLtDestroy", (lt_handle handle))                                   \
    F(version, size_t, "cublasLtGetVersion", (void))                                               \
    F(status_name, const char *, "cublasLtGetStatusName", (lt_status status))                      \
    F(status_text, const char *, "cublasLtGetStatusString", (lt_status status))                    \
    F(desc_create, lt_status, "cublasLtMatmulDescCreate",                                          \
      (lt_desc * desc, int compute_type, int scale_type))                                          \
    F(desc_destroy, lt_status, "cublasLtMatmulDescDestroy", (lt_desc desc))                        \
    F(desc_set, lt_status, "cublasLtMatmulDescSetAttribute",                                       \
      (lt_desc desc, int attribute, const void *value, size_t bytes))                              \
    F(layout_create, lt_status, "cublasLtMatrixLayoutCreate",                                      \
      (lt_layout * layout, int type, uint64_t rows, uint64_t columns, int64_t stride))             \
    F(layout_destroy, lt_status, "cublasLtMatrixLayoutDestroy", (lt_layout layout))                \
    F(layout_set, lt_status, "cublasLtMatrixLayoutSetAttribute",                                   \
      (lt_layout layout, int attribute, const void *value, size_t bytes))                          \
    F(preference_create, lt_status, "cublasLtMatmulPreferenceCreate", (lt_preference * p))         \
    F(preference_destroy, lt_status, "cublasLtMatmulPreferenceDestroy", (lt_preference p))         \
    F(preference_set, lt_status, "cublasLtMatmulPreferenceSetAttribute",                           \
      (lt_preference p, int attribute, const void *value, size_t bytes))                           \
    F(heuristic, lt_status, "cublasLtMatmulAlgoGetHeuristic",                                      \
      (lt_handle handle, lt_desc desc, lt_layout a, lt_layout b, lt_layout c, lt_layout d,         \
       lt_preference p, int wanted, lt_candidate *found, int *count))                              \
    F(check, lt_status, "cublasLtMatmulAlgoCheck",                                                 \
      (lt_handle handle, lt_desc desc, lt_layout a, lt_layout b, lt_layout c, lt_layout d,         \
       const lt_algo *algo, lt_candidate *result))                                                 \
    F(matmul, lt_status, "cublasLtMatmul",                                                         \
      (lt_handle handle, lt_desc desc, const void *alpha, const void *a, lt_layout a_layout,       \
       const void *b, lt_layout b_layout, const void *beta, const void *c, lt_layout c_layout,     \
       void *d, lt_layout d_layout, const lt_algo *algo, void *workspace, size_t bytes,            \
       struct cu_stream_object *stream))

typedef struct cublaslt {
    void *library;
    lt_handle handle;
#define CUBLASLT_MEMBER(member, type, symbol, parameters) type(*member) parameters;
    CUBLASLT_FUNCTIONS(CUBLASLT_MEMBER)
#undef CUBLASLT_MEMBER
} cublaslt;

#endif
