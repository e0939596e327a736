// Adapts an exported model to one user's rows, in C:
//
//   adapt MODEL.tflite ROWS.bin LEARNING_RATE NUM_STEPS
//
// ROWS.bin is int32 num_rows and int32 x_len, then for each row float32[x_len] and an
// int32 label, in the machine's byte order. Prints the first row's probabilities
// before and after the rows were adapted to, and after a reset, and the rows' loss.

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_c.h"
#include "sha256.h"

enum { PAD_FEATURES = 0x00, PAD_LABELS = 0xff };  // Bytes; the latter is label -1.

typedef struct {
  int32_t count, x_len;
  float* x;        // [count, x_len]
  int32_t* label;  // [count]
} Rows;

// An exported model, loaded. The personal weights live in `compiled` and stay there
// from one signature's run to the next.
typedef struct {
  uint8_t* content;  // Of the file; the model is read in place.
  LiteRtEnvironment environment;
  LiteRtOptions options;
  LiteRtModel model;
  LiteRtCompiledModel compiled;
} Device;

// A signature and the buffers it runs on, in its order.
typedef struct {
  LiteRtSignature handle;
  const char* name;
  size_t index, num_inputs, num_outputs;
  LiteRtTensorBuffer *inputs, *outputs;
} Signature;

static bool ok(LiteRtStatus status, const char* what) {
  if (status == kLiteRtStatusOk) return true;
  fprintf(stderr, "adapt: cannot %s (LiteRT status %d).\n", what, (int)status);
  return false;
}

static bool read_whole(FILE* file, Rows* rows) {
  int32_t sizes[2];
  if (fread(sizes, sizeof(sizes), 1, file) != 1 || sizes[0] < 1 || sizes[1] < 1)
    return false;
  rows->count = sizes[0];
  rows->x_len = sizes[1];
  const size_t count = (size_t)rows->count, x_len = (size_t)rows->x_len;
  // Before anything is allocated, lest another file's first bytes ask for gigabytes.
  if (fseek(file, 0, SEEK_END) != 0 ||
      (uint64_t)ftell(file) != sizeof(sizes) + (uint64_t)count * (x_len + 1) * 4 ||
      fseek(file, sizeof(sizes), SEEK_SET) != 0)
    return false;
  rows->x = malloc(count * x_len * sizeof(*rows->x));
  rows->label = malloc(count * sizeof(*rows->label));
  if (!rows->x || !rows->label) return false;
  for (size_t i = 0; i < count; ++i) {
    if (fread(rows->x + i * x_len, sizeof(*rows->x), x_len, file) != x_len ||
        fread(rows->label + i, sizeof(*rows->label), 1, file) != 1)
      return false;
  }
  return true;
}

static bool read_rows(const char* path, Rows* rows) {
  FILE* file = fopen(path, "rb");
  const bool done = file && read_whole(file, rows);
  if (file) fclose(file);
  if (!done) fprintf(stderr, "adapt: no whole rows can be read at %s.\n", path);
  return done;
}

static void free_rows(Rows* rows) {
  free(rows->x);
  free(rows->label);
}

// Returns a file's content, to be freed, or NULL.
static uint8_t* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  if (!file) return NULL;
  uint8_t* content = NULL;
  const long length = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
  if (length > 0 && fseek(file, 0, SEEK_SET) == 0) {
    *size = (size_t)length;
    content = malloc(*size);
    if (content && fread(content, 1, *size, file) != *size) {
      free(content);
      content = NULL;
    }
  }
  fclose(file);
  return content;
}

// Whether the checksum at the start of a model file is that of its content; true for
// files of version 0.1.0, which have none. ondevice/seal.py has the format in words.
static bool is_undamaged(uint8_t* content, size_t size) {
  static const char marker[] = "tff_perfedavg256";
  enum { START = 8, LENGTH = sizeof(marker) - 1, DIGEST = START + LENGTH };
  uint8_t written[32], found[32];
  int alike = 0;
  for (size_t i = 0; i < LENGTH && START + i < size; ++i)
    alike += content[START + i] == (uint8_t)marker[i];
  // Half of the marker, so that a damaged one is not taken for none.
  if (2 * alike < LENGTH) return true;
  if (size < DIGEST + sizeof(written)) return false;
  memcpy(written, content + DIGEST, sizeof(written));
  memset(content + DIGEST, 0, sizeof(written));
  sha256(content, size, found);
  memcpy(content + DIGEST, written, sizeof(written));
  return memcmp(written, found, sizeof(written)) == 0;
}

static bool open_device(const char* path, Device* device) {
  size_t size = 0;
  device->content = read_file(path, &size);
  // LiteRT does not verify a file: a damaged one can crash the process.
  if (device->content && !is_undamaged(device->content, size)) {
    fprintf(stderr, "adapt: %s is damaged: its checksum is not that of its content.\n",
            path);
    return false;
  }
  if (!device->content || size < 8 || memcmp(device->content + 4, "TFL3", 4) != 0) {
    fprintf(stderr, "adapt: %s is missing or no TensorFlow Lite file.\n", path);
    return false;
  }
  // Otherwise it looks for the libraries of GPUs and NPUs and reports every step.
  const LiteRtEnvOption quietly_on_cpu[] = {
      {kLiteRtEnvOptionTagAutoRegisterAccelerators,
       {kLiteRtAnyTypeInt, {kLiteRtHwAcceleratorCpu}}},
      {kLiteRtEnvOptionTagMinLoggerSeverity,
       {kLiteRtAnyTypeInt, {kLiteRtLogSeverityError}}},
  };
  if (!ok(LiteRtCreateEnvironment(2, quietly_on_cpu, &device->environment),
          "create an environment"))
    return false;
  return ok(LiteRtCreateModelFromBuffer(device->environment, device->content, size,
                                        &device->model),
            "read the model") &&
         ok(LiteRtCreateOptions(&device->options), "create options") &&
         ok(LiteRtSetOptionsHardwareAccelerators(device->options,
                                                 kLiteRtHwAcceleratorCpu),
            "choose the CPU") &&
         ok(LiteRtCreateCompiledModel(device->environment, device->model,
                                      device->options, &device->compiled),
            "compile the model");
}

static void close_device(Device* device) {
  if (device->compiled) LiteRtDestroyCompiledModel(device->compiled);
  if (device->options) LiteRtDestroyOptions(device->options);
  if (device->model) LiteRtDestroyModel(device->model);
  if (device->environment) LiteRtDestroyEnvironment(device->environment);
  free(device->content);
}

static bool find_signature(const Device* device, Signature* signature) {
  size_t count = 0;
  if (!ok(LiteRtGetNumModelSignatures(device->model, &count), "count signatures"))
    return false;
  for (size_t i = 0; i < count; ++i) {
    const char* key = NULL;
    if (!ok(LiteRtGetModelSignature(device->model, i, &signature->handle),
            "read a signature") ||
        !ok(LiteRtGetSignatureKey(signature->handle, &key), "read its name"))
      return false;
    if (strcmp(key, signature->name) == 0) {
      signature->index = i;
      return true;
    }
  }
  fprintf(stderr, "adapt: the model has no signature '%s'; export it again.\n",
          signature->name);
  return false;
}

static bool create_input(const Device* device, Signature* signature, size_t i) {
  LiteRtTensor tensor;
  LiteRtRankedTensorType type;
  LiteRtTensorBufferRequirements needs;
  return ok(LiteRtGetSignatureInputTensorByIndex(signature->handle, i, &tensor),
            "find an input") &&
         ok(LiteRtGetRankedTensorType(tensor, &type), "read an input's shape") &&
         ok(LiteRtGetCompiledModelInputBufferRequirements(
                device->compiled, signature->index, i, &needs),
            "size an input") &&
         ok(LiteRtCreateManagedTensorBufferFromRequirements(
                device->environment, &type, needs, &signature->inputs[i]),
            "create an input");
}

static bool create_output(const Device* device, Signature* signature, size_t i) {
  LiteRtTensor tensor;
  LiteRtRankedTensorType type;
  LiteRtTensorBufferRequirements needs;
  return ok(LiteRtGetSignatureOutputTensorByIndex(signature->handle, i, &tensor),
            "find an output") &&
         ok(LiteRtGetRankedTensorType(tensor, &type), "read an output's shape") &&
         ok(LiteRtGetCompiledModelOutputBufferRequirements(
                device->compiled, signature->index, i, &needs),
            "size an output") &&
         ok(LiteRtCreateManagedTensorBufferFromRequirements(
                device->environment, &type, needs, &signature->outputs[i]),
            "create an output");
}

static bool open_signature(const Device* device, Signature* signature) {
  size_t num_inputs, num_outputs;
  if (!find_signature(device, signature) ||
      !ok(LiteRtGetNumSignatureInputs(signature->handle, &num_inputs),
          "count inputs") ||
      !ok(LiteRtGetNumSignatureOutputs(signature->handle, &num_outputs),
          "count outputs"))
    return false;
  signature->inputs = calloc(num_inputs, sizeof(*signature->inputs));
  signature->outputs = calloc(num_outputs, sizeof(*signature->outputs));
  if (!signature->inputs || !signature->outputs) {
    fprintf(stderr, "adapt: out of memory.\n");
    return false;
  }
  signature->num_inputs = num_inputs;
  signature->num_outputs = num_outputs;
  for (size_t i = 0; i < num_inputs; ++i)
    if (!create_input(device, signature, i)) return false;
  for (size_t i = 0; i < num_outputs; ++i)
    if (!create_output(device, signature, i)) return false;
  return true;
}

static void close_signature(Signature* signature) {
  for (size_t i = 0; i < signature->num_inputs; ++i)
    if (signature->inputs[i]) LiteRtDestroyTensorBuffer(signature->inputs[i]);
  for (size_t i = 0; i < signature->num_outputs; ++i)
    if (signature->outputs[i]) LiteRtDestroyTensorBuffer(signature->outputs[i]);
  free(signature->inputs);
  free(signature->outputs);
}

static LiteRtTensorBuffer find_input(const Signature* signature, const char* name) {
  for (size_t i = 0; i < signature->num_inputs; ++i) {
    const char* found = NULL;
    if (LiteRtGetSignatureInputName(signature->handle, i, &found) == kLiteRtStatusOk &&
        strcmp(found, name) == 0)
      return signature->inputs[i];
  }
  return NULL;
}

static LiteRtTensorBuffer find_output(const Signature* signature, const char* name) {
  for (size_t i = 0; i < signature->num_outputs; ++i) {
    const char* found = NULL;
    if (LiteRtGetSignatureOutputName(signature->handle, i, &found) == kLiteRtStatusOk &&
        strcmp(found, name) == 0)
      return signature->outputs[i];
  }
  return NULL;
}

// Reads how many elements a row has and how many rows there are; false, with a message,
// if there is no such tensor or it has other elements. They all have four bytes.
static bool measure(LiteRtTensorBuffer buffer, const char* name,
                    LiteRtElementType element, size_t* num_rows, size_t* row_len) {
  LiteRtRankedTensorType type;
  if (!buffer || LiteRtGetTensorBufferTensorType(buffer, &type) != kLiteRtStatusOk ||
      type.element_type != element || type.layout.rank < 1) {
    fprintf(stderr, "adapt: the model has no '%s' as a classifier has.\n", name);
    return false;
  }
  *num_rows = (size_t)type.layout.dimensions[0];
  *row_len = 1;
  for (unsigned i = 1; i < type.layout.rank; ++i)
    *row_len *= (size_t)type.layout.dimensions[i];
  return true;
}

// Writes rows to an input; the rows it has beyond those are filled with a byte.
static bool write_input(const Signature* signature, const char* name,
                        LiteRtElementType element, const void* rows, size_t count,
                        size_t row_len, int padding) {
  LiteRtTensorBuffer buffer = find_input(signature, name);
  size_t num_rows, wanted;
  if (!measure(buffer, name, element, &num_rows, &wanted)) return false;
  if (row_len != wanted || count > num_rows) {
    fprintf(stderr, "adapt: '%s' is [%zu, %zu]; %s takes [up to %zu, %zu].\n", name,
            count, row_len, signature->name, num_rows, wanted);
    return false;
  }
  void* memory;
  if (!ok(LiteRtLockTensorBuffer(buffer, &memory, kLiteRtTensorBufferLockModeWrite),
          "write an input"))
    return false;
  const size_t given = count * row_len * 4;
  memcpy(memory, rows, given);
  memset((char*)memory + given, padding, num_rows * row_len * 4 - given);
  return ok(LiteRtUnlockTensorBuffer(buffer), "write an input");
}

// Copies an output's first row.
static bool read_output(const Signature* signature, const char* name,
                        LiteRtElementType element, void* row, size_t row_len) {
  LiteRtTensorBuffer buffer = find_output(signature, name);
  size_t num_rows, found;
  if (!measure(buffer, name, element, &num_rows, &found)) return false;
  void* memory;
  if (!ok(LiteRtLockTensorBuffer(buffer, &memory, kLiteRtTensorBufferLockModeRead),
          "read an output"))
    return false;
  memcpy(row, memory, (found < row_len ? found : row_len) * 4);
  return ok(LiteRtUnlockTensorBuffer(buffer), "read an output");
}

static bool run(const Device* device, Signature* signature) {
  return ok(LiteRtRunCompiledModel(device->compiled, signature->index,
                                   signature->num_inputs, signature->inputs,
                                   signature->num_outputs, signature->outputs),
            signature->name);
}

static bool infer(const Device* device, Signature* signature, const Rows* rows,
                  const char* title) {
  size_t num_rows, classes;
  if (!write_input(signature, "x", kLiteRtElementTypeFloat32, rows->x, 1,
                   (size_t)rows->x_len, PAD_FEATURES) ||
      !run(device, signature) ||
      !measure(find_output(signature, "probabilities"), "probabilities",
               kLiteRtElementTypeFloat32, &num_rows, &classes))
    return false;
  float* probabilities = calloc(classes, sizeof(*probabilities));
  bool done =
      probabilities && read_output(signature, "probabilities",
                                   kLiteRtElementTypeFloat32, probabilities, classes);
  for (size_t i = 0; done && i < classes; ++i) {
    if (isfinite(probabilities[i])) continue;
    fprintf(stderr,
            "adapt: the answer is not finite; take a smaller learning rate.\n");
    done = false;
  }
  if (done) {
    printf("%s", title);
    for (size_t i = 0; i < classes; ++i) printf(" %.9g", (double)probabilities[i]);
    printf("\n");
  }
  free(probabilities);
  return done;
}

static bool adapt(const Device* device, Signature* signature, const Rows* rows,
                  float learning_rate, int32_t num_steps) {
  const size_t count = (size_t)rows->count;
  float loss;
  int32_t applied;
  if (!write_input(signature, "x", kLiteRtElementTypeFloat32, rows->x, count,
                   (size_t)rows->x_len, PAD_FEATURES) ||
      !write_input(signature, "y", kLiteRtElementTypeInt32, rows->label, count, 1,
                   PAD_LABELS) ||
      !write_input(signature, "learning_rate", kLiteRtElementTypeFloat32,
                   &learning_rate, 1, 1, 0) ||
      !write_input(signature, "num_steps", kLiteRtElementTypeInt32, &num_steps, 1, 1,
                   0) ||
      !run(device, signature) ||
      !read_output(signature, "loss", kLiteRtElementTypeFloat32, &loss, 1) ||
      !read_output(signature, "applied", kLiteRtElementTypeInt32, &applied, 1))
    return false;
  if (!applied) {
    fprintf(stderr,
            "adapt: the steps led to weights or answers that are not finite, or were "
            "more than the file takes, so the weights are as before; take a smaller "
            "learning rate.\n");
    return false;
  }
  printf("loss %.9g\n", (double)loss);
  return true;
}

static bool demonstrate(const char* model_path, const Rows* rows, float learning_rate,
                        int32_t num_steps) {
  Device device = {0};
  Signature inferring = {.name = "infer"};
  Signature adapting = {.name = "adapt_steps"};
  Signature resetting = {.name = "reset"};
  const bool done = open_device(model_path, &device) &&
                    open_signature(&device, &inferring) &&
                    open_signature(&device, &adapting) &&
                    open_signature(&device, &resetting) &&
                    infer(&device, &inferring, rows, "initial") &&
                    adapt(&device, &adapting, rows, learning_rate, num_steps) &&
                    infer(&device, &inferring, rows, "adapted") &&
                    run(&device, &resetting) &&
                    infer(&device, &inferring, rows, "reset");
  close_signature(&resetting);
  close_signature(&adapting);
  close_signature(&inferring);
  close_device(&device);
  return done;
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "Usage: adapt MODEL.tflite ROWS.bin LEARNING_RATE NUM_STEPS\n");
    return 2;
  }
  char *end_of_rate, *end_of_steps;
  const float learning_rate = strtof(argv[3], &end_of_rate);
  const long num_steps = strtol(argv[4], &end_of_steps, 10);
  if (*end_of_rate || *end_of_steps || !isfinite(learning_rate) ||
      learning_rate <= 0 || num_steps < 1 || num_steps > INT32_MAX) {
    fprintf(stderr,
            "adapt: LEARNING_RATE is '%s' and NUM_STEPS '%s'; they must be numbers "
            "above 0, for example 0.05 and 5.\n",
            argv[3], argv[4]);
    return 2;
  }
  Rows rows = {0};
  const bool done = read_rows(argv[2], &rows) &&
                    demonstrate(argv[1], &rows, learning_rate, (int32_t)num_steps);
  free_rows(&rows);
  return done ? EXIT_SUCCESS : EXIT_FAILURE;
}
