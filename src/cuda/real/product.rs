//! Products by cublasLt: never a split of the inner dimension, never TF32.
//!
//! cublasLt thinks in columns: `yᵀ = weight · xᵀ` there, whose first factor is stored transposed. A row of ours is one
//! of its columns, so nothing is moved.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;

use super::CudaStream;
use super::Handle;
use super::context::Context;
use crate::driver::Address;
use crate::driver::Algorithm;
use crate::driver::CudaError;
use crate::driver::Number;
use crate::driver::Product;
use crate::driver::Result;
use crate::driver::Shape;

/// What an algorithm may use besides; one for each stream.
pub(super) const WORKSPACE: usize = 64 << 20;
/// Of what a row begins at.
const ALIGNED: u32 = 16;
/// Row counts come and go; each is three small things of the host.
const MAX_LAYOUTS: usize = 4096;

/// Of a bias that nobody reads: without any, an algorithm would be refused.
const ANYWHERE: Address = Address(256);

const NO_OFFER: sys::cublasLtMatmulHeuristicResult_t = sys::cublasLtMatmulHeuristicResult_t {
    algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.,
    reserved: [0; 4],
};

/// As cublasLt has it; none if it is of another library.
fn named(algorithm: &Algorithm) -> Option<sys::cublasLtMatmulAlgo_t> {
    let bytes: [u8; 64] = algorithm.0.as_slice().try_into().ok()?;
    Some(sys::cublasLtMatmulAlgo_t { data: bytemuck::cast(bytes) })
}

/// Of one caller.
pub(super) struct Products {
    library: Handle<sys::cublasLtContext>,
    preference: Handle<sys::cublasLtMatmulPreferenceOpaque_t>,
    operations: HashMap<(Number, Number, bool), Handle<sys::cublasLtMatmulDescOpaque_t>>,
    layouts: HashMap<(Shape, usize), Layouts>,
}

/// Of weight, x and y.
#[derive(Clone, Copy)]
struct Layouts([Handle<sys::cublasLtMatrixLayoutOpaque_t>; 3]);

impl Layouts {
    fn free(self) {
        for layout in self.0 {
            // SAFETY: made by `layouts`, destroyed once. What it answers changes nothing.
            let _ = unsafe { lt::destroy_matrix_layout(layout.0) };
        }
    }
}

const fn of(number: Number) -> sys::cudaDataType_t {
    match number {
        Number::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Number::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Number::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}

/// What cublasLt answered to what cannot go wrong but by a fault, or for want of memory.
fn check<T>(context: &Context, doing: &str, answer: std::result::Result<T, lt::CublasError>) -> Result<T> {
    answer.map_err(|lt::CublasError(status)| match status {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => context.out_of_memory(doing, 0),
        _ => context.fault(format!("{doing}: {status:?}")),
    })
}

impl Products {
    pub(super) fn new(context: &Context) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let library = lt::create_handle().map_err(|lt::CublasError(status)| match status {
            sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => context.out_of_memory("cublasLt", 0),
            _ => CudaError::Missing(format!(
                "cublasLt {} does not start with a driver for CUDA {}.{}: {status:?}",
                context.card.cublaslt,
                context.card.driver / 1000,
                context.card.driver % 1000 / 10
            )),
        })?;
        let preference = check(context, "make a preference", lt::create_matmul_pref())?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the preference was just made; the value is read before this returns.
            let set = unsafe { lt::set_matmul_pref_attribute(preference, attribute, value, bytes) };
            check(context, "set a preference", set)
        };
        let workspace = WORKSPACE as u64;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
        // No scheme at all: sums are never split, so the bits of a row depend on that row alone.
        let no_split = 0u32;
        set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const no_split).cast(), 4)?;
        let aligned = ALIGNED;
        for of_matrix in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(of_matrix, (&raw const aligned).cast(), 4)?;
        }
        let (operations, layouts) = (HashMap::new(), HashMap::new());
        Ok(Self { library: Handle(library), preference: Handle(preference), operations, layouts })
    }

    fn operation(&mut self, context: &Context, shape: &Shape) -> Result<sys::cublasLtMatmulDesc_t> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let key = (shape.number, shape.output, shape.has_bias);
        if let Some(operation) = self.operations.get(&key) {
            return Ok(operation.0);
        }
        let made = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, of(Number::F32));
        let operation = check(context, "describe a product", made)?;
        let set = |attribute, value: i32| {
            // SAFETY: just made; the value is read before this returns.
            let set =
                unsafe { lt::set_matmul_desc_attribute(operation, attribute, (&raw const value).cast(), 4) };
            check(context, "describe a product", set)
        };
        // Both are enumerations of C: 1 is "transposed".
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1)?;
        if shape.has_bias {
            set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32,
            )?;
        }
        self.operations.insert(key, Handle(operation));
        Ok(operation)
    }

    fn layouts(
        &mut self,
        context: &Context,
        shape: &Shape,
        rows: usize,
    ) -> Result<[sys::cublasLtMatrixLayout_t; 3]> {
        if let Some(layouts) = self.layouts.get(&(*shape, rows)) {
            return Ok(layouts.0.map(|layout| layout.0));
        }
        if self.layouts.len() >= MAX_LAYOUTS {
            self.layouts.drain().for_each(|(_, layouts)| layouts.free());
        }
        let make = |number, height: usize, width: usize, stride: usize| {
            let made = lt::create_matrix_layout(of(number), height as u64, width as u64, stride as i64);
            check(context, "describe a matrix", made).map(Handle)
        };
        let layouts = Layouts([
            make(shape.number, shape.inputs, shape.outputs, shape.weight_stride)?,
            make(shape.number, shape.inputs, rows, shape.x_stride)?,
            make(shape.output, shape.outputs, rows, shape.y_stride)?,
        ]);
        self.layouts.insert((*shape, rows), layouts);
        Ok(layouts.0.map(|layout| layout.0))
    }

    fn set_bias(context: &Context, operation: sys::cublasLtMatmulDesc_t, bias: Address) -> Result<()> {
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        // SAFETY: the operation lives; the address is read before this returns.
        let set =
            unsafe { lt::set_matmul_desc_attribute(operation, attribute, (&raw const bias.0).cast(), 8) };
        check(context, "name a bias", set)
    }

    pub(super) fn algorithms(
        &mut self,
        context: &Context,
        shape: &Shape,
        rows: usize,
        most: usize,
    ) -> Result<Vec<Algorithm>> {
        let operation = self.operation(context, shape)?;
        if shape.has_bias {
            Self::set_bias(context, operation, ANYWHERE)?;
        }
        let [weight, x, y] = self.layouts(context, shape, rows)?;
        let mut offers = vec![NO_OFFER; most];
        let mut count = 0;
        // SAFETY: all of it lives; there is room for so many answers.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.library.0,
                operation,
                weight,
                x,
                y,
                y,
                self.preference.0,
                most as i32,
                offers.as_mut_ptr(),
                &mut count,
            )
        };
        match status {
            sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => {}
            // There is no way to make this product.
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE => return Ok(Vec::new()),
            status => return check(context, "choose an algorithm", Err(lt::CublasError(status))),
        }
        offers.truncate(usize::try_from(count).unwrap_or(0));
        let fits = |offer: &sys::cublasLtMatmulHeuristicResult_t| {
            offer.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && offer.workspaceSize <= WORKSPACE
        };
        let bytes =
            |offer: sys::cublasLtMatmulHeuristicResult_t| bytemuck::cast_slice(&offer.algo.data).to_vec();
        Ok(offers.into_iter().filter(fits).map(|offer| Algorithm(bytes(offer))).collect())
    }

    pub(super) fn accepts(
        &mut self,
        context: &Context,
        shape: &Shape,
        rows: usize,
        algorithm: &Algorithm,
    ) -> Result<bool> {
        let Some(algo) = named(algorithm) else { return Ok(false) };
        let operation = self.operation(context, shape)?;
        if shape.has_bias {
            Self::set_bias(context, operation, ANYWHERE)?;
        }
        let [weight, x, y] = self.layouts(context, shape, rows)?;
        let mut answer = NO_OFFER;
        // SAFETY: all of it lives; there is room for the answer.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(self.library.0, operation, weight, x, y, y, &algo, &mut answer)
        };
        Ok(status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && answer.workspaceSize <= WORKSPACE)
    }

    pub(super) fn multiply(
        &mut self,
        context: &Context,
        stream: CudaStream,
        workspace: Address,
        product: &Product<'_>,
    ) -> Result<()> {
        use sys::cublasStatus_t as Status;
        let Product { shape, rows, x, weight, bias, y, algorithm } = *product;
        let refused = |why: &str| CudaError::Unsupported(format!("{rows} rows of {shape:?}: {why}"));
        let algo = named(algorithm).ok_or_else(|| refused("no algorithm of cublasLt"))?;
        let operation = self.operation(context, shape)?;
        if shape.has_bias {
            Self::set_bias(context, operation, bias)?;
        }
        let [a, b, d] = self.layouts(context, shape, rows)?;
        let (alpha, beta) = (1f32, if shape.accumulates { 1f32 } else { 0f32 });
        let at = |address: Address| address.0 as *mut c_void;
        // SAFETY: all descriptions live, and are read before this returns; the caller answers for the addresses, and
        // the workspace is the stream's own.
        let made = unsafe {
            lt::matmul(
                self.library.0,
                operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(weight),
                a,
                at(x),
                b,
                at(y),
                d,
                at(y),
                d,
                &algo,
                at(workspace),
                WORKSPACE,
                stream.0.cast(),
            )
        };
        match made {
            Err(lt::CublasError(
                status @ (Status::CUBLAS_STATUS_NOT_SUPPORTED
                | Status::CUBLAS_STATUS_INVALID_VALUE
                | Status::CUBLAS_STATUS_ARCH_MISMATCH),
            )) => Err(refused(&format!("{status:?}"))),
            answer => check(context, "make a product", answer),
        }
    }

    pub(super) fn free(&mut self) {
        self.layouts.drain().for_each(|(_, layouts)| layouts.free());
        // SAFETY: all were made here, and are destroyed once. What they answer changes nothing.
        unsafe {
            for (_, operation) in self.operations.drain() {
                let _ = lt::destroy_matmul_desc(operation.0);
            }
            let _ = lt::destroy_matmul_pref(self.preference.0);
            let _ = lt::destroy_handle(self.library.0);
        }
    }
}
