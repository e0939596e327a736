// The part of LiteRT's C interface, as of release 2.3, that adapt.c calls. An app that
// has the headers of a LiteRT SDK includes those instead.

#ifndef TFF_PERFEDAVG_C_DEMO_LITERT_C_H_
#define TFF_PERFEDAVG_C_DEMO_LITERT_C_H_

#include <stddef.h>
#include <stdint.h>

typedef struct LiteRtEnvironmentT* LiteRtEnvironment;
typedef struct LiteRtOptionsT* LiteRtOptions;
typedef struct LiteRtModelT* LiteRtModel;
typedef struct LiteRtSignatureT* LiteRtSignature;
typedef struct LiteRtTensorT* LiteRtTensor;
typedef struct LiteRtCompiledModelT* LiteRtCompiledModel;
typedef struct LiteRtTensorBufferT* LiteRtTensorBuffer;
typedef struct LiteRtTensorBufferRequirementsT* LiteRtTensorBufferRequirements;

typedef enum { kLiteRtStatusOk = 0 } LiteRtStatus;  // Any other is an error.
enum { kLiteRtHwAcceleratorCpu = 1 };
enum { kLiteRtLogSeverityError = 3 };
typedef enum {
  kLiteRtEnvOptionTagAutoRegisterAccelerators = 24,
  kLiteRtEnvOptionTagMinLoggerSeverity = 25,
} LiteRtEnvOptionTag;
typedef enum { kLiteRtAnyTypeInt = 2 } LiteRtAnyType;
typedef enum {
  kLiteRtElementTypeFloat32 = 1,
  kLiteRtElementTypeInt32 = 2,
} LiteRtElementType;
typedef enum {
  kLiteRtTensorBufferLockModeRead = 0,
  kLiteRtTensorBufferLockModeWrite = 1,
} LiteRtTensorBufferLockMode;

typedef struct {
  LiteRtAnyType type;
  union {
    int64_t int_value;
    void* ptr_value;
  };
} LiteRtAny;

typedef struct {
  LiteRtEnvOptionTag tag;
  LiteRtAny value;
} LiteRtEnvOption;

typedef struct {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} LiteRtLayout;

typedef struct {
  LiteRtElementType element_type;
  LiteRtLayout layout;
} LiteRtRankedTensorType;

// The library reads and writes these through pointers to ours.
_Static_assert(sizeof(LiteRtEnvOption) == 24, "LiteRtEnvOption has another layout");
_Static_assert(sizeof(LiteRtLayout) == 68, "LiteRtLayout has another layout");
_Static_assert(sizeof(LiteRtRankedTensorType) == 72,
               "LiteRtRankedTensorType has another layout");

LiteRtStatus LiteRtCreateEnvironment(int num_options,
                                     const LiteRtEnvOption* options,
                                     LiteRtEnvironment* environment);
void LiteRtDestroyEnvironment(LiteRtEnvironment environment);

LiteRtStatus LiteRtCreateOptions(LiteRtOptions* options);
LiteRtStatus LiteRtSetOptionsHardwareAccelerators(LiteRtOptions options,
                                                  int accelerators);
void LiteRtDestroyOptions(LiteRtOptions options);

// The buffer has to outlive the model.
LiteRtStatus LiteRtCreateModelFromBuffer(LiteRtEnvironment environment,
                                         const void* buffer, size_t size,
                                         LiteRtModel* model);
void LiteRtDestroyModel(LiteRtModel model);

LiteRtStatus LiteRtGetNumModelSignatures(LiteRtModel model, size_t* count);
LiteRtStatus LiteRtGetModelSignature(LiteRtModel model, size_t index,
                                     LiteRtSignature* signature);
LiteRtStatus LiteRtGetSignatureKey(LiteRtSignature signature, const char** key);
LiteRtStatus LiteRtGetNumSignatureInputs(LiteRtSignature signature, size_t* count);
LiteRtStatus LiteRtGetNumSignatureOutputs(LiteRtSignature signature, size_t* count);
LiteRtStatus LiteRtGetSignatureInputName(LiteRtSignature signature, size_t index,
                                         const char** name);
LiteRtStatus LiteRtGetSignatureOutputName(LiteRtSignature signature, size_t index,
                                          const char** name);
LiteRtStatus LiteRtGetSignatureInputTensorByIndex(LiteRtSignature signature,
                                                  size_t index, LiteRtTensor* tensor);
LiteRtStatus LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature signature,
                                                   size_t index, LiteRtTensor* tensor);
LiteRtStatus LiteRtGetRankedTensorType(LiteRtTensor tensor,
                                       LiteRtRankedTensorType* type);

// The model has to outlive what is compiled from it.
LiteRtStatus LiteRtCreateCompiledModel(LiteRtEnvironment environment,
                                       LiteRtModel model, LiteRtOptions options,
                                       LiteRtCompiledModel* compiled_model);
LiteRtStatus LiteRtGetCompiledModelInputBufferRequirements(
    LiteRtCompiledModel compiled_model, size_t signature, size_t input,
    LiteRtTensorBufferRequirements* requirements);
LiteRtStatus LiteRtGetCompiledModelOutputBufferRequirements(
    LiteRtCompiledModel compiled_model, size_t signature, size_t output,
    LiteRtTensorBufferRequirements* requirements);
LiteRtStatus LiteRtRunCompiledModel(LiteRtCompiledModel compiled_model,
                                    size_t signature, size_t num_inputs,
                                    LiteRtTensorBuffer* inputs, size_t num_outputs,
                                    LiteRtTensorBuffer* outputs);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel compiled_model);

LiteRtStatus LiteRtCreateManagedTensorBufferFromRequirements(
    LiteRtEnvironment environment, const LiteRtRankedTensorType* type,
    LiteRtTensorBufferRequirements requirements, LiteRtTensorBuffer* buffer);
LiteRtStatus LiteRtGetTensorBufferTensorType(LiteRtTensorBuffer buffer,
                                             LiteRtRankedTensorType* type);
LiteRtStatus LiteRtLockTensorBuffer(LiteRtTensorBuffer buffer, void** address,
                                    LiteRtTensorBufferLockMode mode);
LiteRtStatus LiteRtUnlockTensorBuffer(LiteRtTensorBuffer buffer);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer buffer);

#endif  // TFF_PERFEDAVG_C_DEMO_LITERT_C_H_
