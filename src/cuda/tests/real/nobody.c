/* A driver, NVRTC and cublasLt that are nobody's: as many functions as are called, over memory of the host and at
   once. It shows that these calls fit together, pass what they say they pass, and come to an end; not what a card does.
   Whatever a card would refuse loudly (a bad handle, a copy out of its memory) ends in abort(). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(what) do { if (!(what)) { fprintf(stderr, "nobody.c: %s: %s\n", __func__, #what); abort(); } } while (0)
typedef uint64_t address;

/* ---- libcuda ---- */
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, ILLEGAL = 700 };
static __thread int bound;
static int fault, told;
static const uint64_t TOTAL = 1ull << 32;
static uint64_t used;
static struct { address at; uint64_t bytes; } blocks[256];

static int ready(void) {
    MUST(bound);
    MUST(!fault || !told++); /* after a fault nobody is to ask again */
    return fault;
}
static int holds(address at, uint64_t bytes) {
    for (int i = 0; i < 256; i++)
        if (blocks[i].at && at >= blocks[i].at && at + bytes <= blocks[i].at + blocks[i].bytes) return 1;
    return 0;
}

int cuInit(unsigned flags) { return flags ? INVALID : OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 2; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return OK; }
int cuDeviceGetName(char *name, int bytes, int device) { snprintf(name, bytes, device ? "NOBODY T4" : "NOBODY H100"); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = TOTAL; return OK; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? (device ? 7 : 9) : which == 76 ? (device ? 5 : 0) : which == 16 ? 132 : -1;
    return OK;
}
int cuGetErrorName(int code, const char **text) { *text = code == ILLEGAL ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR"; return OK; }
int cuGetErrorString(int code, const char **text) { (void)code; *text = "an illegal memory access was encountered"; return OK; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    static int retained;
    MUST(device == 0 && !retained++);
    *context = (void *)0x1234;
    return OK;
}
int cuCtxSetCurrent(void *context) { MUST(context == (void *)0x1234); bound = 1; return OK; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) { int e = ready(); *free_ = TOTAL - used; *total = TOTAL; return e; }
int cuMemAlloc_v2(address *at, size_t bytes) {
    if (ready()) return fault;
    if (bytes > TOTAL - used) return OUT_OF_MEMORY;
    for (int i = 0; i < 256; i++)
        if (!blocks[i].at) {
            *at = blocks[i].at = (address)aligned_alloc(256, (bytes + 255) / 256 * 256);
            used += blocks[i].bytes = bytes;
            return OK;
        }
    abort();
}
int cuMemFree_v2(address at) {
    if (ready()) return fault;
    for (int i = 0; i < 256; i++)
        if (blocks[i].at == at) { used -= blocks[i].bytes; blocks[i].at = 0; free((void *)at); return OK; }
    abort();
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) { MUST(!flags); *at = malloc(bytes); return ready(); }
int cuMemFreeHost(void *at) { free(at); return ready(); }

/* What is recorded: launches of `add_f`, as many as fit. */
struct launch { float *x, *y; unsigned x_stride, y_stride, rows, width; };
struct graph { int magic, count; struct launch launches[8]; };
struct stream { int magic; struct graph *recording; };
static struct stream *stream_of(void *stream) { struct stream *s = stream; MUST(s && s->magic == 77); return s; }
int cuStreamCreate(struct stream **stream, unsigned flags) {
    MUST(flags == 1); /* non-blocking */
    *stream = calloc(1, sizeof **stream);
    (*stream)->magic = 77;
    return ready();
}
int cuStreamDestroy_v2(void *s) { stream_of(s)->magic = 0; return ready(); }
int cuStreamSynchronize(void *s) { MUST(!stream_of(s)->recording); return ready(); }
int cuStreamWaitEvent(void *s, int *event, unsigned flags) { stream_of(s); MUST(*event == 88 && !flags); return ready(); }
int cuStreamIsCapturing(void *s, int *status) { *status = stream_of(s)->recording != 0; return ready(); }
int cuStreamBeginCapture_v2(void *s, int mode) {
    MUST(mode == 1); /* of this thread */
    stream_of(s)->recording = calloc(1, sizeof(struct graph));
    stream_of(s)->recording->magic = 99;
    return ready();
}
int cuStreamEndCapture(void *s, struct graph **graph) {
    *graph = stream_of(s)->recording;
    stream_of(s)->recording = 0;
    MUST(*graph);
    return ready();
}
int cuGraphInstantiateWithFlags(struct graph **instance, struct graph *graph, unsigned long long flags) {
    MUST(graph->magic == 99 && !flags);
    *instance = malloc(sizeof *graph);
    **instance = *graph;
    return ready();
}
int cuGraphDestroy(struct graph *graph) { MUST(graph->magic == 99); graph->magic = 0; free(graph); return ready(); }
int cuGraphExecDestroy(struct graph *graph) { return cuGraphDestroy(graph); }
int cuGraphUpload(struct graph *graph, void *s) { MUST(graph->magic == 99); stream_of(s); return ready(); }
static int add(const struct launch *l) {
    if (!holds((address)l->x, 4) || !holds((address)l->y, 4)) return fault = ILLEGAL;
    for (unsigned row = 0; row < l->rows; row++)
        for (unsigned i = 0; i < l->width; i++) l->x[row * l->x_stride + i] += l->y[row * l->y_stride + i];
    return OK;
}
int cuGraphLaunch(struct graph *graph, void *s) {
    MUST(graph->magic == 99 && !stream_of(s)->recording);
    for (int i = 0; i < graph->count; i++) if (add(&graph->launches[i])) return fault;
    return ready();
}

int cuEventCreate(int **event, unsigned flags) { MUST(flags == 0 || flags == 2); *event = malloc(4); **event = 88; return ready(); }
int cuEventRecord(int *event, void *s) { MUST(*event == 88); stream_of(s); return ready(); }
int cuEventSynchronize(int *event) { MUST(*event == 88); return ready(); }
int cuEventElapsedTime_v2(float *ms, int *from, int *to) { MUST(*from == 88 && *to == 88); *ms = 1.5; return ready(); }
int cuEventDestroy_v2(int *event) { MUST(*event == 88); *event = 0; return ready(); }

int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *s) {
    MUST(!stream_of(s)->recording);
    if (!holds(to, bytes)) return fault = ILLEGAL;
    memcpy((void *)to, from, bytes);
    return ready();
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *s) {
    stream_of(s);
    if (!holds(from, bytes)) return fault = ILLEGAL;
    memcpy(to, (void *)from, bytes);
    return ready();
}
int cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, void *s) {
    stream_of(s);
    if (!holds(from, bytes) || !holds(to, bytes)) return fault = ILLEGAL;
    memmove((void *)to, (void *)from, bytes);
    return ready();
}

static const char CUBIN[] = "\x7f" "ELF of nobody";
int cuModuleLoadData(const char **module, const char *image) { MUST(!strcmp(image, CUBIN)); *module = CUBIN; return ready(); }
int cuModuleGetFunction(char **function, const char *module, const char *name) {
    MUST(module == CUBIN);
    *function = strdup(name);
    return ready();
}
static int shared_allowed = 48 << 10;
int cuFuncSetAttribute(char *function, int which, int bytes) { MUST(function && which == 8); shared_allowed = bytes; return ready(); }
int cuLaunchKernel(char *function, unsigned gx, unsigned gy, unsigned gz, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *s, void **p, void **extra) {
    if (ready()) return fault;
    MUST(!extra && ty == 1 && tz == 1 && (int)shared <= shared_allowed);
    if (!gx || !gy || !gz || tx > 1024) return INVALID;
    MUST(!strcmp(function, "add_f"));
    struct launch l = { *(float **)p[0], *(float **)p[2], *(unsigned *)p[1], *(unsigned *)p[3], *(unsigned *)p[4], *(unsigned *)p[5] };
    struct graph *recording = stream_of(s)->recording;
    if (!recording) { add(&l); return OK; } /* as on a card: the fault of a kernel shows in the next call */
    MUST(recording->count < 8);
    recording->launches[recording->count++] = l;
    return OK;
}


/* ---- libnvrtc ---- */
static const char LOG[] = "line 1: error: nobody compiles this";
int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return OK; }
int nvrtcCreateProgram(char **program, const char *source, const char *name, int headers, const char **a, const char **b) {
    MUST(!name && !headers && !a && !b);
    *program = strdup(source);
    return OK;
}
int nvrtcCompileProgram(char *program, int count, const char **options) {
    MUST(count >= 2 && !strcmp(options[0], "--gpu-architecture=sm_90a") && !strcmp(options[1], "--std=c++17"));
    return strstr(program, "__global__") ? OK : 6;
}
int nvrtcGetCUBINSize(char *program, size_t *bytes) { MUST(program); *bytes = sizeof CUBIN; return OK; }
int nvrtcGetCUBIN(char *program, char *cubin) { MUST(program); memcpy(cubin, CUBIN, sizeof CUBIN); return OK; }
int nvrtcGetProgramLogSize(char *program, size_t *bytes) { MUST(program); *bytes = sizeof LOG; return OK; }
int nvrtcGetProgramLog(char *program, char *log) { MUST(program); memcpy(log, LOG, sizeof LOG); return OK; }
int nvrtcDestroyProgram(char **program) { free(*program); return OK; }

/* ---- libcublasLt: f32 alone, in order ---- */
enum { NOT_SUPPORTED = 15 };
struct layout { int type; uint64_t rows, cols; int64_t stride; };
struct desc { int transposed, epilogue; float *bias; };
struct pref { uint64_t workspace; unsigned schemes, alignments; };
struct algo { uint64_t data[8]; };
struct offer { struct algo algo; size_t workspace; int state; float waves; int reserved[4]; };
size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtCreate(void **handle) { MUST(bound); *handle = (void *)0x5678; return OK; }
int cublasLtDestroy(void *handle) { MUST(handle == (void *)0x5678); return OK; }
int cublasLtMatrixLayoutCreate(struct layout **l, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    *l = malloc(sizeof **l);
    **l = (struct layout){ type, rows, cols, stride };
    return OK;
}
int cublasLtMatrixLayoutDestroy(struct layout *l) { free(l); return OK; }
int cublasLtMatmulDescCreate(struct desc **d, int compute, int scale) {
    MUST(compute == 68 && scale == 0); /* f32, not TF32 */
    *d = calloc(1, sizeof **d);
    return OK;
}
int cublasLtMatmulDescSetAttribute(struct desc *d, int which, const void *value, size_t bytes) {
    if (which == 3) { MUST(bytes == 4); d->transposed = *(int *)value; }
    else if (which == 7) { MUST(bytes == 4); d->epilogue = *(int *)value; }
    else { MUST(which == 8 && bytes == 8); d->bias = *(float **)value; }
    return OK;
}
int cublasLtMatmulDescDestroy(struct desc *d) { free(d); return OK; }
int cublasLtMatmulPreferenceCreate(struct pref **p) { *p = calloc(1, sizeof **p); (*p)->schemes = ~0u; return OK; }
int cublasLtMatmulPreferenceSetAttribute(struct pref *p, int which, const void *value, size_t bytes) {
    if (which == 1) { MUST(bytes == 8); p->workspace = *(uint64_t *)value; }
    else if (which == 3) { MUST(bytes == 4); p->schemes = *(unsigned *)value; }
    else { MUST(which >= 5 && which <= 8 && bytes == 4 && *(unsigned *)value == 16); p->alignments++; }
    return OK;
}
int cublasLtMatmulPreferenceDestroy(struct pref *p) { free(p); return OK; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, struct desc *d, struct layout *a, struct layout *b, struct layout *c,
                                   struct layout *y, struct pref *p, int most, struct offer *offers, int *count) {
    MUST(handle == (void *)0x5678 && p->workspace == 64 << 20 && p->schemes == 0 && p->alignments == 4 && d->transposed == 1);
    MUST(c == y && a->rows == b->rows && a->cols == y->rows && b->cols == y->cols);
    *count = 0;
    if (a->type) return NOT_SUPPORTED;
    for (int i = 0; i < 4 && i < most; i++) {
        memset(&offers[i], 0, sizeof offers[i]);
        offers[i].algo.data[0] = 100 + i;
        offers[i].workspace = i == 2 ? 65 << 20 : 0; /* more than there is */
        offers[i].state = i == 3 ? NOT_SUPPORTED : OK;
        *count = i + 1;
    }
    return OK;
}
int cublasLtMatmulAlgoCheck(void *handle, struct desc *d, struct layout *a, struct layout *b, struct layout *c,
                            struct layout *y, const struct algo *algo, struct offer *answer) {
    MUST(handle == (void *)0x5678 && d && a && b && c == y);
    answer->workspace = 0;
    return algo->data[0] == 100 || algo->data[0] == 101 ? OK : NOT_SUPPORTED;
}
int cublasLtMatmul(void *handle, struct desc *d, const float *alpha, const float *w, struct layout *a, const float *x,
                   struct layout *b, const float *beta, const float *c, struct layout *cl, float *y, struct layout *yl,
                   const struct algo *algo, void *work, size_t bytes, void *s) {
    MUST(handle == (void *)0x5678 && *alpha == 1 && c == y && cl == yl && bytes == 64 << 20 && holds((address)work, bytes));
    stream_of(s);
    if (algo->data[0] != 100 && algo->data[0] != 101) return NOT_SUPPORTED;
    for (uint64_t row = 0; row < yl->cols; row++)
        for (uint64_t o = 0; o < yl->rows; o++) {
            float sum = 0, *out = y + row * yl->stride + o;
            for (uint64_t k = 0; k < a->rows; k++) sum += w[o * a->stride + k] * x[row * b->stride + k];
            if (*beta) sum += *beta * *out;
            *out = sum + (d->epilogue == 4 ? d->bias[o] : 0);
        }
    return OK;
}
