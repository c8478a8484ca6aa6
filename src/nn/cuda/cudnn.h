/* What is used of cuDNN's graph interface, declared here so that nothing of it is needed to build.
 * Names and values are those of cudnn_graph_v9.h of cuDNN 9. */
#ifndef NN_CUDA_CUDNN_H
#define NN_CUDA_CUDNN_H

#include <stddef.h>
#include <stdint.h>

typedef int cudnn_status; /* cudnnStatus_t */
typedef struct cudnn_handle_object *cudnn_handle;
typedef void *cudnn_object; /* cudnnBackendDescriptor_t */
struct cu_stream_object;

enum { /* cudnnStatus_t; thousands are the kind */
       CUDNN_OK = 0,
       CUDNN_BAD_PARAM = 2000,
       CUDNN_NOT_SUPPORTED = 3000,
       CUDNN_HOST_ALLOCATION_FAILED = 4003, /* CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED */
       CUDNN_DEVICE_ALLOCATION_FAILED =
           4004 /* CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED */
};

enum { /* cudnnDataType_t */
       DNN_FLOAT = 0,
       DNN_HALF = 2,
       DNN_INT32 = 4,
       DNN_BFLOAT16 = 9,
       DNN_BOOLEAN = 11
};

enum { /* cudnnBackendAttributeType_t, CUDNN_TYPE_... */
       DNN_TYPE_HANDLE = 0,
       DNN_TYPE_DATA_TYPE = 1,
       DNN_TYPE_BOOLEAN = 2, /* bool */
       DNN_TYPE_INT64 = 3,
       DNN_TYPE_FLOAT = 4,
       DNN_TYPE_VOID_PTR = 6,
       DNN_TYPE_CONVOLUTION_MODE = 7,
       DNN_TYPE_HEUR_MODE = 8,
       DNN_TYPE_NUMERICAL_NOTE = 11,
       DNN_TYPE_POINTWISE_MODE = 14,
       DNN_TYPE_DESCRIPTOR = 15, /* CUDNN_TYPE_BACKEND_DESCRIPTOR */
       DNN_TYPE_REDUCTION_OPERATOR = 18,
       DNN_TYPE_CHAR = 24
};

enum { /* cudnnBackendDescriptorType_t, CUDNN_BACKEND_..._DESCRIPTOR */
       DNN_POINTWISE = 0,
       DNN_CONVOLUTION = 1,
       DNN_ENGINE = 2,
       DNN_ENGINECFG = 3,
       DNN_ENGINEHEUR = 4,
       DNN_EXECUTION_PLAN = 5,
       DNN_OPERATION_CONVOLUTION_FORWARD = 10,
       DNN_OPERATION_POINTWISE = 13,
       DNN_OPERATIONGRAPH = 15,
       DNN_VARIANT_PACK = 16,
       DNN_TENSOR = 17,
       DNN_MATMUL = 18,
       DNN_OPERATION_MATMUL = 19,
       DNN_REDUCTION = 21,
       DNN_OPERATION_REDUCTION = 22,
       DNN_OPERATION_SDPA_FWD = 41 /* from 9.13.1 */
};

enum { /* cudnnBackendAttributeName_t, CUDNN_ATTR_... */
       DNN_POINTWISE_MODE = 0,
       DNN_POINTWISE_MATH_PREC = 1,
       DNN_POINTWISE_AXIS = 9,
       DNN_CONVOLUTION_COMP_TYPE = 100,
       DNN_CONVOLUTION_CONV_MODE = 101,
       DNN_CONVOLUTION_DILATIONS = 102,
       DNN_CONVOLUTION_FILTER_STRIDES = 103,
       DNN_CONVOLUTION_POST_PADDINGS = 104,
       DNN_CONVOLUTION_PRE_PADDINGS = 105,
       DNN_CONVOLUTION_SPATIAL_DIMS = 106,
       DNN_ENGINEHEUR_MODE = 200,
       DNN_ENGINEHEUR_OPERATION_GRAPH = 201,
       DNN_ENGINEHEUR_RESULTS = 202,
       DNN_ENGINECFG_ENGINE = 300,
       DNN_EXECUTION_PLAN_HANDLE = 400,
       DNN_EXECUTION_PLAN_ENGINE_CONFIG = 401,
       DNN_EXECUTION_PLAN_WORKSPACE_SIZE = 402,
       DNN_EXECUTION_PLAN_JSON_REPRESENTATION = 405,
       DNN_CONVOLUTION_FORWARD_ALPHA = 700, /* CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_... */
       DNN_CONVOLUTION_FORWARD_BETA = 701,
       DNN_CONVOLUTION_FORWARD_CONV_DESC = 702,
       DNN_CONVOLUTION_FORWARD_W = 703,
       DNN_CONVOLUTION_FORWARD_X = 704,
       DNN_CONVOLUTION_FORWARD_Y = 705,
       DNN_OPERATION_POINTWISE_PW_DESCRIPTOR = 750,
       DNN_OPERATION_POINTWISE_XDESC = 751,
       DNN_OPERATION_POINTWISE_BDESC = 752,
       DNN_OPERATION_POINTWISE_YDESC = 753,
       DNN_OPERATION_POINTWISE_TDESC = 758,
       DNN_OPERATIONGRAPH_HANDLE = 800,
       DNN_OPERATIONGRAPH_OPS = 801,
       DNN_TENSOR_BYTE_ALIGNMENT = 900,
       DNN_TENSOR_DATA_TYPE = 901,
       DNN_TENSOR_DIMENSIONS = 902,
       DNN_TENSOR_STRIDES = 903,
       DNN_TENSOR_UNIQUE_ID = 906,
       DNN_TENSOR_IS_VIRTUAL = 907,
       DNN_TENSOR_IS_BY_VALUE = 908,
       DNN_VARIANT_PACK_UNIQUE_IDS = 1000,
       DNN_VARIANT_PACK_DATA_POINTERS = 1001,
       DNN_VARIANT_PACK_WORKSPACE = 1003,
       DNN_ENGINE_NUMERICAL_NOTE = 1303,
       DNN_MATMUL_COMP_TYPE = 1500,
       DNN_OPERATION_MATMUL_ADESC = 1520,
       DNN_OPERATION_MATMUL_BDESC = 1521,
       DNN_OPERATION_MATMUL_CDESC = 1522,
       DNN_OPERATION_MATMUL_DESC = 1523,
       DNN_REDUCTION_OPERATOR = 1600,
       DNN_REDUCTION_COMP_TYPE = 1601,
       DNN_OPERATION_REDUCTION_XDESC = 1610,
       DNN_OPERATION_REDUCTION_YDESC = 1611,
       DNN_OPERATION_REDUCTION_DESC = 1612,
       DNN_SDPA_FWD_QDESC = 2800, /* CUDNN_ATTR_OPERATION_SDPA_FWD_... */
       DNN_SDPA_FWD_KDESC = 2801,
       DNN_SDPA_FWD_VDESC = 2802,
       DNN_SDPA_FWD_ODESC = 2803,
       DNN_SDPA_FWD_SCALEDESC = 2805
};

enum {
    DNN_POINTWISE_ADD = 0, /* cudnnPointwiseMode_t, CUDNN_POINTWISE_... */
    DNN_POINTWISE_MUL = 1,
    DNN_POINTWISE_DIV = 6,
    DNN_POINTWISE_SUB = 9,
    DNN_POINTWISE_EXP = 13,
    DNN_POINTWISE_LOG = 15,
    DNN_POINTWISE_CMP_GE = 303,
    DNN_POINTWISE_GEN_INDEX = 501,
    DNN_POINTWISE_BINARY_SELECT = 601,
    DNN_REDUCE_ADD = 0, /* cudnnReduceTensorOp_t, CUDNN_REDUCE_TENSOR_... */
    DNN_REDUCE_MAX = 3,
    DNN_CROSS_CORRELATION = 1,  /* cudnnConvolutionMode_t, CUDNN_CROSS_CORRELATION */
    DNN_HEUR_MODE_FALLBACK = 2, /* cudnnBackendHeurMode_t, CUDNN_HEUR_MODE_... */
    DNN_HEUR_MODE_A = 3
};

enum {                           /* cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_... */
       DNN_NOTE_TENSOR_CORE = 0, /* of float32: TF32 */
       DNN_NOTE_DOWN_CONVERT_INPUTS = 1,
       DNN_NOTE_REDUCED_PRECISION_REDUCTION = 2,
       DNN_NOTE_FFT = 3,
       DNN_NOTE_NONDETERMINISTIC = 4,
       DNN_NOTE_WINOGRAD = 5,
       DNN_NOTE_WINOGRAD_TILE_4x4 = 6,
       DNN_NOTE_WINOGRAD_TILE_6x6 = 7,
       DNN_NOTE_WINOGRAD_TILE_13x13 = 8
};

/* F(member, type of the result, symbol, parameters) */
#define CUDNN_FUNCTIONS(F)                                                                         \
    F(version, size_t, "cudnnGetVersion", (void))                                                  \
    F(status_text, const char *, "cudnnGetErrorString", (cudnn_status status))                     \
    F(last_error, void, "cudnnGetLastErrorString", (char *message, size_t size))                   \
    F(create, cudnn_status, "cudnnCreate", (cudnn_handle * handle))                                \
    F(destroy, cudnn_status, "cudnnDestroy", (cudnn_handle handle))                                \
    F(set_stream, cudnn_status, "cudnnSetStream",                                                  \
      (cudnn_handle handle, struct cu_stream_object * stream))                                     \
    F(object_create, cudnn_status, "cudnnBackendCreateDescriptor",                                 \
      (int type, cudnn_object *object))                                                            \
    F(object_destroy, cudnn_status, "cudnnBackendDestroyDescriptor", (cudnn_object object))        \
    F(finalize, cudnn_status, "cudnnBackendFinalize", (cudnn_object object))                       \
    F(set, cudnn_status, "cudnnBackendSetAttribute",                                               \
      (cudnn_object object, int attribute, int type, int64_t count, const void *values))           \
    F(get, cudnn_status, "cudnnBackendGetAttribute",                                               \
      (cudnn_object object, int attribute, int type, int64_t wanted, int64_t *count,               \
       void *values))                                                                              \
    F(execute, cudnn_status, "cudnnBackendExecute",                                                \
      (cudnn_handle handle, cudnn_object plan, cudnn_object pack))

typedef struct cudnn {
    void *library;
    cudnn_handle handle;
    size_t number; /* 91900 for 9.19.0 */
#define CUDNN_MEMBER(member, type, symbol, parameters) type(*member) parameters;
    CUDNN_FUNCTIONS(CUDNN_MEMBER)
#undef CUDNN_MEMBER
} cudnn;

#endif
