/* A library with the name and the functions of the CUDA driver, for machines without one. It counts
 * and describes GPUs and can do nothing else. What it says comes from the environment:
 * FAKE_CUDA_INIT, the result of cuInit; FAKE_CUDA_VERSION; FAKE_CUDA_GPUS, a number of them;
 * FAKE_CUDA_ARCH, 10 * major + minor. */
#include "nn/cuda/driver.h"

#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

static int setting(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

EXPORT cu_result cuInit(unsigned flags);
cu_result cuInit(unsigned flags)
{
    return flags ? 1 : setting("FAKE_CUDA_INIT", 0);
}

EXPORT cu_result cuDriverGetVersion(int *version);
cu_result cuDriverGetVersion(int *version)
{
    *version = setting("FAKE_CUDA_VERSION", 13000);
    return 0;
}

EXPORT cu_result cuGetErrorName(cu_result result, const char **name);
cu_result cuGetErrorName(cu_result result, const char **name)
{
    *name = "CUDA_ERROR_FAKE";
    return result == 12345; /* an error that has no name */
}

EXPORT cu_result cuGetErrorString(cu_result result, const char **text);
cu_result cuGetErrorString(cu_result result, const char **text)
{
    *text = "a fake error";
    return result == 12345;
}

EXPORT cu_result cuDeviceGetCount(int *count);
cu_result cuDeviceGetCount(int *count)
{
    *count = setting("FAKE_CUDA_GPUS", 1);
    return 0;
}

EXPORT cu_result cuDeviceGet(cu_device *device, int ordinal);
cu_result cuDeviceGet(cu_device *device, int ordinal)
{
    *device = 100 + ordinal;
    return 0;
}

EXPORT cu_result cuDeviceGetName(char *name, int size, cu_device device);
cu_result cuDeviceGetName(char *name, int size, cu_device device)
{
    snprintf(name, (size_t)size, "Fake GPU %d", device - 100);
    return 0;
}

EXPORT cu_result cuDeviceGetAttribute(int *value, int attribute, cu_device device);
cu_result cuDeviceGetAttribute(int *value, int attribute, cu_device device)
{
    const int arch = setting("FAKE_CUDA_ARCH", 90);
    switch (attribute) {
    case CU_ATTRIBUTE_MULTIPROCESSORS: *value = 132; break;
    case CU_ATTRIBUTE_MAJOR: *value = arch / 10; break;
    case CU_ATTRIBUTE_MINOR: *value = arch % 10; break;
    case CU_ATTRIBUTE_SHARED_OPTIN: *value = 232448; break;
    default: return 1;
    }
    return device < 100 ? 101 : 0;
}

EXPORT cu_result cuDeviceTotalMem_v2(size_t *bytes, cu_device device);
cu_result cuDeviceTotalMem_v2(size_t *bytes, cu_device device)
{
    *bytes = (size_t)141 << 30;
    return device < 100 ? 101 : 0;
}

/* The others are there, so that the driver is whole, and fail. */
#define REST(name)                                                                                 \
    EXPORT cu_result name(void);                                                                   \
    cu_result name(void)                                                                           \
    {                                                                                              \
        return 801;                                                                                \
    }
REST(cuDevicePrimaryCtxRetain)
REST(cuDevicePrimaryCtxRelease_v2)
REST(cuCtxSetCurrent)
REST(cuMemGetInfo_v2)
REST(cuMemAlloc_v2)
REST(cuMemFree_v2)
REST(cuMemHostAlloc)
REST(cuMemFreeHost)
REST(cuMemcpyHtoDAsync_v2)
REST(cuMemcpyDtoHAsync_v2)
REST(cuMemcpyDtoDAsync_v2)
REST(cuMemcpy2DAsync_v2)
REST(cuMemsetD8Async)
REST(cuStreamCreate)
REST(cuStreamDestroy_v2)
REST(cuStreamSynchronize)
REST(cuStreamWaitEvent)
REST(cuEventCreate)
REST(cuEventDestroy_v2)
REST(cuEventRecord)
REST(cuEventSynchronize)
REST(cuEventQuery)
REST(cuEventElapsedTime)
REST(cuModuleLoadData)
REST(cuModuleUnload)
REST(cuModuleGetFunction)
REST(cuFuncSetAttribute)
REST(cuLaunchKernel)
REST(cuStreamBeginCapture_v2)
REST(cuStreamEndCapture)
REST(cuGraphInstantiateWithFlags)
REST(cuGraphLaunch)
REST(cuGraphDestroy)
REST(cuGraphExecDestroy)
