// The most that this machine multiplies and adds, in registers alone: GFLOP/s of f32, and of dot products of bfloat16 where there
// are such (0 elsewhere; AMX is not measured). cc -O3 -march=native -pthread peak.c; ./a.out THREADS
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 12, STEPS = 100000000 };

#if defined(__AVX512F__)
typedef __m512 vector;
#define SET _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#else
typedef __m256 vector;
#define SET _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#endif

static volatile float sink;

static void *multiply(void *unused)
{
    vector sum[CHAINS], a = SET(0.5f), b = SET(0.25f);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = SET((float)i);
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = FMA(sum[i], a, b);
    }
    for (int i = 0; i < CHAINS; i++)
        sink = ((float *)&sum[i])[0];
    return unused;
}

#if defined(__AVX512BF16__)
static void *dot(void *unused)
{
    __m512 sum[CHAINS];
    __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f)), b = a;
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
    for (int i = 0; i < CHAINS; i++)
        sink = ((float *)&sum[i])[0];
    return unused;
}
#endif

static double rate(void *(*work)(void *), int threads, double operations)
{
    pthread_t others[256];
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < threads; i++)
        pthread_create(&others[i], NULL, work, NULL);
    for (int i = 0; i < threads; i++)
        pthread_join(others[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    return operations * STEPS * CHAINS * threads / seconds / 1e9;
}

int main(int count, char **words)
{
    int threads = count > 1 ? atoi(words[1]) : 1;
    threads = threads < 1 ? 1 : threads > 256 ? 256 : threads;
    double f32 = rate(multiply, threads, 2.0 * sizeof(vector) / sizeof(float)), bf16 = 0;
#if defined(__AVX512BF16__)
    bf16 = rate(dot, threads, 2.0 * 32);
#endif
    printf("{\"f32\": %.1f, \"bf16\": %.1f}\n", f32, bf16);
    return 0;
}
