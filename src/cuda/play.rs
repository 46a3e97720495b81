//! Launches kernels on the CPU: a module's own text, compiled by a C++ compiler behind `play/play.hpp`, which also says what
//! such a play shows and what it cannot.

#![expect(unsafe_code, reason = "a library of C, and pointers to what its kernels read")]

use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::CString;
use std::ffi::c_char;
use std::ffi::c_void;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::OnceLock;

use libloading::Library;

use crate::driver::Argument;
use crate::driver::CudaError;
use crate::driver::Launch;
use crate::driver::Result;
use crate::modules;
use crate::modules::Module;
use crate::played::Kernels;

/// In which order a block's threads run and when their copies are done. What a kernel computes must not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Warps from the last to the first.
    pub is_reversed: bool,
    /// Asynchronous copies are done when they are asked for, not when they are waited for.
    pub is_early: bool,
}

type LaunchFn =
    unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, u32, u32) -> *const c_char;
type SignatureFn = unsafe extern "C" fn(*const c_char) -> *const c_char;

/// The compiler that `CXX` names, else `c++`; what it says of itself, where it is there.
pub fn compiler() -> Option<&'static str> {
    static VERSION: OnceLock<Option<String>> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let answer = Command::new(program()).arg("--version").output().ok()?;
        answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
    });
    version.as_deref()
}

fn program() -> String {
    std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

/// All of them, for a played card.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compiled;

impl Kernels for Compiled {
    fn prepare(&self, kernel: &str) -> Result<()> {
        prepare(kernel)
    }

    fn launch(&self, launch: &Launch<'_>) -> std::result::Result<(), String> {
        self::launch(launch).map_err(|error| error.to_string())
    }
}

/// Compiles what a kernel is in, if that is not done yet.
pub fn prepare(kernel: &str) -> Result<()> {
    library(&modules::module_of(kernel)).map(drop)
}

/// Launches a kernel and waits for it. Addresses are this process's.
pub fn launch(launch: &Launch<'_>) -> Result<()> {
    launch_in(launch, Order::default())
}

/// The same in an order.
pub fn launch_in(launch: &Launch<'_>, order: Order) -> Result<()> {
    let fault = |problem: String| CudaError::Fault {
        card: "a played card".into(),
        problem: format!("{}: {problem}", launch.kernel),
    };
    let library = library(&modules::module_of(launch.kernel))?;
    let name = CString::new(launch.kernel).expect("the name of a kernel");
    let mut values: Vec<[u8; 8]> = launch.arguments.iter().map(bytes_of).collect();
    let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
    // One launch at a time: a block's threads are in variables of the library.
    let _alone = library.alone.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: both functions are as `play.hpp` declares them; what they return is copied before the next launch.
    unsafe {
        let signature: libloading::Symbol<'_, SignatureFn> =
            library.code.get(b"play_signature\0").map_err(|error| fault(error.to_string()))?;
        let expected = text(signature(name.as_ptr())).ok_or_else(|| fault("is not in its module".into()))?;
        let given: String = launch.arguments.iter().map(letter).collect();
        if given != expected {
            return Err(fault(format!(
                "takes {expected:?} and was given {given:?} (p: a pointer, u: an unsigned, f: a float)"
            )));
        }
        let play: libloading::Symbol<'_, LaunchFn> =
            library.code.get(b"play_launch\0").map_err(|error| fault(error.to_string()))?;
        let problem = play(
            name.as_ptr(),
            launch.grid.as_ptr(),
            launch.threads,
            launch.shared,
            pointers.as_mut_ptr(),
            order.is_reversed.into(),
            order.is_early.into(),
        );
        text(problem).map_or(Ok(()), |problem| Err(fault(problem)))
    }
}

fn letter(argument: &Argument) -> char {
    match argument {
        Argument::Address(_) => 'p',
        Argument::U32(_) => 'u',
        Argument::F32(_) => 'f',
    }
}

fn bytes_of(argument: &Argument) -> [u8; 8] {
    let mut bytes = [0; 8];
    match argument {
        Argument::Address(address) => bytes = address.0.to_ne_bytes(),
        Argument::U32(number) => bytes[..4].copy_from_slice(&number.to_ne_bytes()),
        Argument::F32(number) => bytes[..4].copy_from_slice(&number.to_ne_bytes()),
    }
    bytes
}

/// SAFETY: `pointer` is null or a string that ends in a zero.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: as above
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

struct Played {
    code: Library,
    alone: Mutex<()>,
}

fn library(module: &Module) -> Result<&'static Played> {
    static OPEN: LazyLock<Mutex<HashMap<String, &'static Played>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(library) = open.get(&module.name) {
        return Ok(library);
    }
    let error = |log: String| CudaError::Compile { kernel: module.name.clone(), log };
    let path = compiled(module).map_err(error)?;
    // SAFETY: made by us from our own text; opening it runs nothing but what registers its kernels.
    let code = unsafe { Library::new(&path) }.map_err(|problem| error(problem.to_string()))?;
    // Stays open: its threads' stacks and its kernels are in use until the process ends.
    let library: &'static Played = Box::leak(Box::new(Played { code, alone: Mutex::new(()) }));
    open.insert(module.name.clone(), library);
    Ok(library)
}

/// The library of a module, compiled once by whichever process comes first.
fn compiled(module: &Module) -> std::result::Result<PathBuf, String> {
    // CUDA reads numbers as vectors, and a compiler for cards lets it.
    const FLAGS: [&str; 9] = [
        "-O2",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fno-strict-aliasing",
        "-w",
        "-U_FORTIFY_SOURCE",
        "-x",
        "c++",
    ];
    let version =
        compiler().ok_or_else(|| format!("{:?} is no C++ compiler (CXX names another)", program()))?;
    let source = module.played();
    let mut hasher = blake3::Hasher::new();
    for part in [&[source.as_str(), version], &FLAGS[..]].concat() {
        hasher.update(part.as_bytes()).update(b"\0");
    }
    for define in &module.defines {
        hasher.update(define.as_bytes()).update(b"\0");
    }
    let folder = folder();
    let stem = format!("{}-{}", module.name, &hasher.finalize().to_hex()[..16]);
    let library = folder.join(format!("{stem}.so"));
    let told = |problem: std::io::Error| format!("{}: {problem}", folder.display());
    std::fs::create_dir_all(&folder).map_err(told)?;
    let lock = File::create(folder.join(format!("{stem}.lock"))).map_err(told)?;
    lock.lock().map_err(told)?; // until it is dropped
    if !library.exists() {
        let made = tempfile::tempdir_in(&folder).map_err(told)?;
        let (from, to) = (made.path().join("kernels.cpp"), made.path().join("kernels.so"));
        std::fs::write(&from, source).map_err(told)?;
        let defines = module.defines.iter().map(|define| format!("-D{define}"));
        let answer = Command::new(program()).args(FLAGS).args(defines).arg(&from).arg("-o").arg(&to).output();
        let answer = answer.map_err(told)?;
        if !answer.status.success() {
            return Err(String::from_utf8_lossy(&answer.stderr).into_owned());
        }
        std::fs::rename(&to, &library).map_err(told)?;
    }
    Ok(library)
}

/// In cargo's target folder, where the program is in one.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(std::env::temp_dir, Path::to_path_buf).join("tmp").join("played-kernels")
}
