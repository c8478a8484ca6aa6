/* The CUDA driver, found when the program runs: nothing of CUDA is needed to build, and a machine
 * without it loses nothing but its GPU. Functions keep the driver's meaning; the table drops the
 * prefix and the version suffix of their names. */
#ifndef NN_CUDA_DRIVER_H
#define NN_CUDA_DRIVER_H

#include "core/error.h"

typedef int cu_result; /* CUresult; 0 is success */
typedef int cu_device;
typedef uint64_t cu_address; /* CUdeviceptr */
typedef struct cu_context_object *cu_context;
typedef struct cu_stream_object *cu_stream;
typedef struct cu_event_object *cu_event;
typedef struct cu_module_object *cu_module;
typedef struct cu_function_object *cu_function;
typedef struct cu_graph_object *cu_graph;
typedef struct cu_graph_exec_object *cu_graph_exec;

/* CUDA_MEMCPY2D. Memory types: 1 host, 2 device. */
typedef struct cu_copy_2d {
    size_t from_x, from_y;
    unsigned from_type;
    const void *from_host;
    cu_address from_device;
    void *from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    unsigned to_type;
    void *to_host;
    cu_address to_device;
    void *to_array;
    size_t to_pitch;
    size_t width_bytes, height;
} cu_copy_2d;

/* F(member, symbol, parameters) */
#define CUDA_DRIVER_FUNCTIONS(F)                                                                   \
    F(init, "cuInit", (unsigned flags))                                                            \
    F(driver_version, "cuDriverGetVersion", (int *version))                                        \
    F(error_name, "cuGetErrorName", (cu_result result, const char **name))                         \
    F(error_text, "cuGetErrorString", (cu_result result, const char **text))                       \
    F(device_count, "cuDeviceGetCount", (int *count))                                              \
    F(device_get, "cuDeviceGet", (cu_device * device, int ordinal))                                \
    F(device_name, "cuDeviceGetName", (char *name, int size, cu_device device))                    \
    F(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, cu_device device))     \
    F(device_memory, "cuDeviceTotalMem_v2", (size_t * bytes, cu_device device))                    \
    F(context_retain, "cuDevicePrimaryCtxRetain", (cu_context * context, cu_device device))        \
    F(context_release, "cuDevicePrimaryCtxRelease_v2", (cu_device device))                         \
    F(context_set, "cuCtxSetCurrent", (cu_context context))                                        \
    F(memory_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total_bytes))                 \
    F(mem_alloc, "cuMemAlloc_v2", (cu_address * address, size_t bytes))                            \
    F(mem_free, "cuMemFree_v2", (cu_address address))                                              \
    F(host_alloc, "cuMemHostAlloc", (void **memory, size_t bytes, unsigned flags))                 \
    F(host_free, "cuMemFreeHost", (void *memory))                                                  \
    F(copy_to_device, "cuMemcpyHtoDAsync_v2",                                                      \
      (cu_address to, const void *from, size_t bytes, cu_stream stream))                           \
    F(copy_to_host, "cuMemcpyDtoHAsync_v2",                                                        \
      (void *to, cu_address from, size_t bytes, cu_stream stream))                                 \
    F(copy_on_device, "cuMemcpyDtoDAsync_v2",                                                      \
      (cu_address to, cu_address from, size_t bytes, cu_stream stream))                            \
    F(copy_2d, "cuMemcpy2DAsync_v2", (const cu_copy_2d *copy, cu_stream stream))                   \
    F(fill_bytes, "cuMemsetD8Async",                                                               \
      (cu_address to, unsigned char value, size_t bytes, cu_stream stream))                        \
    F(stream_create, "cuStreamCreate", (cu_stream * stream, unsigned flags))                       \
    F(stream_destroy, "cuStreamDestroy_v2", (cu_stream stream))                                    \
    F(stream_wait, "cuStreamSynchronize", (cu_stream stream))                                      \
    F(stream_wait_event, "cuStreamWaitEvent", (cu_stream stream, cu_event event, unsigned flags))  \
    F(event_create, "cuEventCreate", (cu_event * event, unsigned flags))                           \
    F(event_destroy, "cuEventDestroy_v2", (cu_event event))                                        \
    F(event_record, "cuEventRecord", (cu_event event, cu_stream stream))                           \
    F(event_wait, "cuEventSynchronize", (cu_event event))                                          \
    F(event_elapsed, "cuEventElapsedTime", (float *milliseconds, cu_event from, cu_event to))      \
    F(module_load, "cuModuleLoadData", (cu_module * module, const void *image))                    \
    F(module_unload, "cuModuleUnload", (cu_module module))                                         \
    F(module_function, "cuModuleGetFunction",                                                      \
      (cu_function * function, cu_module module, const char *name))                                \
    F(function_attribute, "cuFuncSetAttribute", (cu_function function, int attribute, int value))  \
    F(launch, "cuLaunchKernel",                                                                    \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,  \
       unsigned block_y, unsigned block_z, unsigned shared_bytes, cu_stream stream,                \
       void **parameters, void **extra))                                                           \
    F(capture_begin, "cuStreamBeginCapture_v2", (cu_stream stream, int mode))                      \
    F(capture_end, "cuStreamEndCapture", (cu_stream stream, cu_graph * graph))                     \
    F(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (cu_graph_exec * exec, cu_graph graph, unsigned long long flags))                            \
    F(graph_launch, "cuGraphLaunch", (cu_graph_exec exec, cu_stream stream))                       \
    F(graph_destroy, "cuGraphDestroy", (cu_graph graph))                                           \
    F(graph_exec_destroy, "cuGraphExecDestroy", (cu_graph_exec exec))

/* Values of CUDA's headers that are used here. */
enum {
    CU_OUT_OF_MEMORY = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_CAPTURE_THREAD_LOCAL = 1,
    CU_MEMORY_HOST = 1,
    CU_MEMORY_DEVICE = 2,
    CU_ATTRIBUTE_MULTIPROCESSORS = 16,
    CU_ATTRIBUTE_MAJOR = 75,
    CU_ATTRIBUTE_MINOR = 76,
    CU_ATTRIBUTE_SHARED_OPTIN = 97, /* bytes of shared memory that a block may ask for */
    CU_FUNCTION_SHARED_BYTES = 8    /* raises that for a function */
};

typedef struct cuda_driver {
    void *library;
    int version; /* 13000 for CUDA 13.0: what the driver supports */
#define CUDA_DRIVER_MEMBER(member, symbol, parameters) cu_result(*member) parameters;
    CUDA_DRIVER_FUNCTIONS(CUDA_DRIVER_MEMBER)
#undef CUDA_DRIVER_MEMBER
} cuda_driver;

/* Opens the driver and initializes it. CT_ENOTFOUND where there is none, CT_EDEVICE where it does
 * not work; the message says why, and what helps. */
ct_status cuda_driver_open(cuda_driver *d, ct_error *error);
void cuda_driver_close(cuda_driver *d); /* also of a zeroed one */
/* CT_OK for 0; else CT_EDEVICE with "WHAT: the driver's own words (NAME)", and CT_ENOMEM where the
 * device is out of memory. */
ct_status cuda_check(const cuda_driver *d, cu_result result, const char *what, ct_error *error);

/* A GPU of the machine. */
typedef struct cuda_device_info {
    int ordinal;
    char name[128];
    int major, minor; /* compute capability */
    int multiprocessors;
    int shared_bytes;          /* that a block may ask for */
    size_t memory, free_bytes; /* free_bytes 0 where it was not asked for */
} cuda_device_info;

ct_status cuda_device_count(const cuda_driver *d, int *count, ct_error *error);
ct_status cuda_device_query(const cuda_driver *d, int ordinal, cuda_device_info *info,
                            ct_error *error);

/* The first of the names that can be opened, NULL terminated; NULL if none can. For libraries of
 * CUDA beside the driver: looks in the system's places, $CUDA_PATH is not read, then in
 * /usr/local/cuda/lib64 and in folder/NAME for each of `folders` (NULL terminated, may be NULL). */
void *cuda_library_open(const char *const *names, const char *const *folders);
void *cuda_library_symbol(void *library, const char *name);
void cuda_library_close(void *library);

#endif
