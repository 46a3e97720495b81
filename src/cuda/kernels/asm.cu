// What only a card can do, each in a function of one line. A card that is played on the CPU has this file replaced by
// play/play.hpp, which defines the same names.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE static __device__ __forceinline__
#define INLINE_MEMBER __device__ __forceinline__
// Behind each kernel: how a played card comes to know it.
#define PLAYED(kernel)

extern __shared__ __align__(128) unsigned char dynamic_shared[];
INLINE unsigned char* shared_memory() { return dynamic_shared; }
INLINE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Rounding to the nearest, ties to even; the first argument in the lower half.
INLINE u32 pack_bf16(float a, float b) { u32 d; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(b), "f"(a)); return d; }
INLINE u32 pack_f16(float a, float b) { u32 d; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(b), "f"(a)); return d; }
INLINE float float_of_f16(u16 bits) { float d; asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(bits)); return d; }
INLINE float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// c[16, 8] += a[16, 16] · b[16, 8], spread over a warp.
INLINE void mma_bf16(float* c, const u32* a, u32 b0, u32 b1) { asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
INLINE void mma_f16(float* c, const u32* a, u32 b0, u32 b1) { asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
// Four matrices of 8 x 8, whose rows are at the addresses of eight lanes each; the second turns each of them.
INLINE void load_matrices(u32* r, u32 address) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory"); }
INLINE void load_turned(u32* r, u32 address) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory"); }
// 16 bytes to shared memory, the first `bytes` of them from `from` and zeros behind, while the thread goes on.
INLINE void copy_async(u32 to, const void* from, u32 bytes) { asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(bytes) : "memory"); }
INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N of the thread's groups are under way.
template <int N> INLINE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
