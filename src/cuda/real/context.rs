//! One for each card of the process: the driver's primary context, what is compiled for it, and its fault.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use cudarc::cublaslt::sys as lt;
use cudarc::driver::result as cuda;
use cudarc::driver::sys;

use super::CudaEvent;
use super::CudaStream;
use super::Handle;
use super::kept;
use super::locked;
use super::upload::Lane;
use crate::compile::Compiler;
use crate::driver::Address;
use crate::driver::Card;
use crate::driver::CudaError;
use crate::driver::Result;
use crate::modules::module_of;

/// Of the driver: what is called here is there from then on.
const OLDEST_DRIVER: u32 = 12_080;
/// Tensor cores with bfloat16, which kernels are written for.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);
/// What a block gets without asking.
const SHARED: u32 = 48 << 10;

/// The cards of this machine, as the driver lists them; none where it has none. No context is made. Fails where the
/// driver, or a library that is needed with it, is missing or too old.
pub fn cards() -> Result<Vec<Card>> {
    // SAFETY: it only opens libraries of these names.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Missing(
            "libcuda.so.1 is missing, which is NVIDIA's driver: it is in the package libcuda1 or \
             libnvidia-compute of its version; a container gets it by `--gpus all`; LD_LIBRARY_PATH may name \
             another folder when this program starts"
                .to_owned(),
        ));
    }
    match cuda::init() {
        Ok(()) => {}
        Err(cuda::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        Err(error) => {
            return Err(CudaError::Missing(format!("NVIDIA's driver does not start: {}", words(error))));
        }
    }
    let mut driver = 0;
    // SAFETY: an integer to write to.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(unlisted)?;
    // SAFETY: it only opens libraries of these names; the version is asked for only where one is there.
    let cublaslt = unsafe { if lt::is_culib_present() { lt::cublasLtGetVersion() } else { 0 } };
    let count = usize::try_from(cuda::device::get_count().map_err(unlisted)?).unwrap_or(0);
    if count > 0 {
        complete(driver.unsigned_abs(), cublaslt as u64)?;
        Compiler::is_present()?;
    }
    (0..count).map(|index| card(index, driver.unsigned_abs(), cublaslt as u64).map_err(unlisted)).collect()
}

fn card(index: usize, driver: u32, cublaslt: u64) -> std::result::Result<Card, cuda::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = cuda::device::get(index as i32)?;
    // SAFETY: a device that was just asked for.
    let attribute = |which| unsafe { cuda::device::get_attribute(device, which) }.map(i32::unsigned_abs);
    Ok(Card {
        index,
        name: cuda::device::get_name(device)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: the same.
        memory: unsafe { cuda::device::total_mem(device) }? as u64,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        driver,
        cublaslt,
    })
}

fn unlisted(error: cuda::DriverError) -> CudaError {
    CudaError::Missing(format!("NVIDIA's driver does not list its cards: {}", words(error)))
}

/// Name and words of an error of the driver.
fn words(error: cuda::DriverError) -> String {
    let of = |text: std::result::Result<&CStr, _>| text.map(|text| text.to_string_lossy().into_owned()).ok();
    match (of(error.error_name()), of(error.error_string())) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        _ => format!("error {}", error.0 as u32),
    }
}

/// Whether driver and cublasLt are there, and new enough.
fn complete(driver: u32, cublaslt: u64) -> Result<()> {
    if driver < OLDEST_DRIVER {
        let version = |number: u32| format!("{}.{}", number / 1000, number % 1000 / 10);
        return Err(CudaError::Missing(format!(
            "NVIDIA's driver is for CUDA {}: at least {} is needed",
            version(driver),
            version(OLDEST_DRIVER)
        )));
    }
    if cublaslt == 0 {
        return Err(CudaError::Missing(
            "libcublasLt.so.13 is missing, which makes products: it is in the package nvidia-cublas of pip \
             (nvidia/cu13/lib) and libcublas-13-0 of CUDA's toolkit; LD_LIBRARY_PATH must name its folder when \
             this program starts"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Whether kernels can run on it.
fn is_new_enough(card: &Card) -> Result<()> {
    let Card { index, name, compute_capability: (major, minor), .. } = card;
    if card.compute_capability < OLDEST_CAPABILITY {
        let (oldest, _) = OLDEST_CAPABILITY;
        return Err(CudaError::Unsupported(format!(
            "card {index}, {name}, has compute capability {major}.{minor}: {oldest}.0 is the least (Ampere)"
        )));
    }
    Ok(())
}

/// A kernel that is loaded.
pub(super) struct Function {
    pub(super) function: Handle<sys::CUfunc_st>,
    shared: AtomicU32,
}

impl Function {
    /// Asks for dynamic shared memory, if it is more than before.
    pub(super) fn allow_shared(&self, context: &Context, bytes: u32) -> Result<()> {
        if bytes <= self.shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function of a module that stays.
        let set = unsafe { cuda::function::set_function_attribute(self.function.0, attribute, bytes as i32) };
        context.check("give a kernel its shared memory", set)?;
        self.shared.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

pub(super) struct Context {
    pub(super) card: Card,
    context: Handle<sys::CUctx_st>,
    compiler: Compiler,
    functions: RwLock<HashMap<String, Arc<Function>>>,
    /// Held while a module is compiled, by name.
    compiling: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    fault: OnceLock<String>,
    /// Made when something large is first uploaded.
    pub(super) lanes: Mutex<Vec<Lane>>,
}

impl Context {
    /// The one of this card: made when it is first asked for, and kept as long as the process.
    pub(super) fn of(index: usize) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<Arc<Context>>> = Mutex::new(Vec::new());
        let mut open = locked(&OPEN);
        if let Some(context) = open.iter().find(|context| context.card.index == index) {
            return Ok(context.clone());
        }
        let cards = cards()?;
        let count = cards.len();
        let card = cards.into_iter().nth(index).ok_or_else(|| {
            CudaError::Unsupported(format!("there is no card {index}: the driver lists {count}, from 0 on"))
        })?;
        is_new_enough(&card)?;
        let compiler = Compiler::nvrtc(card.compute_capability, kept())?;
        let retained = cuda::device::get(index as i32).and_then(|device| {
            // SAFETY: a device that was just asked for. Never released: a context lives as long as the process.
            unsafe { cuda::primary_ctx::retain(device) }
        });
        let context = retained.map_err(|error| CudaError::Fault {
            card: card.name.clone(),
            problem: format!("it cannot be opened: {}", words(error)),
        })?;
        tracing::info!(
            card = card.name,
            index,
            driver = card.driver,
            cublaslt = card.cublaslt,
            compiler = compiler.version(),
            "opened a card"
        );
        let context = Arc::new(Self {
            card,
            context: Handle(context),
            compiler,
            functions: RwLock::default(),
            compiling: Mutex::default(),
            fault: OnceLock::new(),
            lanes: Mutex::default(),
        });
        open.push(context.clone());
        Ok(context)
    }

    /// Makes it this thread's; an error if it has failed.
    pub(super) fn bind(&self) -> Result<()> {
        if let Some(problem) = self.fault.get() {
            return Err(self.faulty(problem));
        }
        // SAFETY: retained, and never released.
        self.check("be used by this thread", unsafe { cuda::ctx::set_current(self.context.0) })
    }

    fn faulty(&self, problem: &str) -> CudaError {
        CudaError::Fault { card: self.card.name.clone(), problem: problem.to_owned() }
    }

    /// The end: from now on, all fails.
    pub(super) fn fault(&self, problem: String) -> CudaError {
        self.faulty(self.fault.get_or_init(|| problem))
    }

    /// What the driver answered. `doing` completes "cannot ..".
    pub(super) fn check<T>(
        &self,
        doing: &str,
        answer: std::result::Result<T, cuda::DriverError>,
    ) -> Result<T> {
        answer.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(doing, 0),
            _ => self.fault(format!("{doing}: {}", words(error))),
        })
    }

    pub(super) fn out_of_memory(&self, what: &str, bytes: usize) -> CudaError {
        let free = cuda::mem_get_info().map_or(0, |(free, _)| free);
        let (what, card) = (what.to_owned(), self.card.name.clone());
        CudaError::OutOfMemory { what, asked: bytes as u64, free: free as u64, card }
    }

    pub(super) fn allocate(&self, bytes: usize, what: &str) -> Result<Address> {
        self.bind()?;
        // SAFETY: nobody reads it before something is written; the driver aligns to 256 bytes at least.
        match unsafe { cuda::malloc_sync(bytes.max(1)) } {
            Err(cuda::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(self.out_of_memory(what, bytes))
            }
            answer => self.check(what, answer).map(Address),
        }
    }

    /// An event, with a time or without.
    pub(super) fn event(&self, is_timed: bool) -> Result<CudaEvent> {
        let flags = match is_timed {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        Ok(Handle(self.check("make an event", cuda::event::create(flags))?))
    }

    /// Lets a stream wait for an event.
    pub(super) fn wait(&self, stream: CudaStream, event: CudaEvent) -> Result<()> {
        // SAFETY: both are ours, and live.
        let waits = unsafe {
            cuda::stream::wait_event(stream.0, event.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        };
        self.check("wait for an event", waits)
    }

    /// A kernel, compiled and loaded with its module when it is first asked for.
    pub(super) fn function(&self, kernel: &str) -> Result<Arc<Function>> {
        let loaded = || self.functions.read().unwrap_or_else(PoisonError::into_inner).get(kernel).cloned();
        if let Some(function) = loaded() {
            return Ok(function);
        }
        let module = module_of(kernel);
        let alone = locked(&self.compiling).entry(module.name.clone()).or_default().clone();
        let _alone = locked(&alone);
        if let Some(function) = loaded() {
            return Ok(function);
        }
        let cubin = self.compiler.cubin(&module)?;
        let failed = |error: cuda::DriverError| CudaError::Compile {
            kernel: module.name.clone(),
            log: format!(
                "the driver, for CUDA {}.{}, does not load what {} made: {}",
                self.card.driver / 1000,
                self.card.driver % 1000 / 10,
                self.compiler.version(),
                words(error)
            ),
        };
        // SAFETY: a whole cubin, as its digest says; never unloaded.
        let handle = unsafe { cuda::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
        let mut functions = Vec::new();
        for name in &module.kernels {
            let text = CString::new(&**name).expect("names are ours");
            // SAFETY: of the module that was just loaded.
            let function = Handle(unsafe { cuda::module::get_function(handle, text) }.map_err(failed)?);
            functions.push((name.clone(), Arc::new(Function { function, shared: AtomicU32::new(SHARED) })));
        }
        self.functions.write().unwrap_or_else(PoisonError::into_inner).extend(functions);
        loaded().ok_or_else(|| self.fault(format!("{} has no kernel {kernel}", module.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let card = |compute_capability| {
            let name = "NVIDIA Test".to_owned();
            Card {
                index: 1,
                name,
                compute_capability,
                memory: 1,
                multiprocessors: 1,
                driver: 13_000,
                cublaslt: 130_100,
            }
        };
        assert!(complete(12_080, 120_800).is_ok() && is_new_enough(&card((8, 0))).is_ok());
        let cases = [
            (
                is_new_enough(&card((7, 5))),
                "card 1, NVIDIA Test, has compute capability 7.5: 8.0 is the least",
            ),
            (complete(12_040, 120_400), "driver is for CUDA 12.4: at least 12.8 is needed"),
            (complete(13_000, 0), "libcublasLt.so.13 is missing"),
        ];
        for (answer, words) in cases {
            let error = answer.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn without_a_driver_cards_are_an_error_that_names_it() {
        match cards() {
            Ok(cards) => eprintln!("skipped: there is a driver, and {} cards", cards.len()),
            Err(CudaError::Missing(words)) => {
                assert!(words.contains("libcuda") || words.contains("driver"), "{words}");
                assert!(matches!(crate::real::open(0), Err(CudaError::Missing(_))));
            }
            Err(other) => panic!("{other}"),
        }
    }
}
